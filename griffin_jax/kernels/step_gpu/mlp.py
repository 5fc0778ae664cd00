"""A residual MLP's step: norm, gate and up, gelu in one launch, down and the sum in another."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from griffin_jax.kernels.step_gpu.launch import launch
from griffin_jax.kernels.step_gpu.norm import entering_like, norm, write
from griffin_jax.kernels.step_gpu.products import (
    add_bias,
    bias_of,
    is_packed,
    options,
    products,
    store,
    vector_like,
)


def gelu(x):
    """The approximation by tanh, which is a sigmoid of twice the argument."""
    return x * jax.nn.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


# Layers of equal shapes are traced once.
@functools.partial(jax.jit, static_argnames=("eps", "interpret"))
def mlp_step(x, entering, gate, up, down, *, eps, interpret=False):
    """x + down(gelu(gate(n)) * up(n)) of n = norm(x), for one token.

    Args:
      x: [D].
      entering: What `project_and_add` gives for the norm of x.
      gate: (weight [F, D], bias [F] or None).
      up: Likewise.
      down: (weight [D, F], bias [D] or None).
      eps: Of the norm.
      interpret: Run on any device, slowly, for tests.

    Returns:
      [D] in the dtype of x.
    """
    expanded, dtype = gate[0].shape[0], x.dtype
    packed = is_packed(gate[0])
    count, launched = options([gate[0], up[0]])

    def expand(inputs, buffers, i):
        layers = inputs["gate"], inputs["up"]
        rows = pl.ds(i * count, count)
        weights = [weight for weight, _ in layers]
        biases = [bias_of(layer, rows) for layer in layers]
        normed = norm(inputs, eps)
        found = products(weights, rows.start, count, inputs, "x", normed, interpret=interpret)
        a, b = (add_bias(y.astype(dtype), bias) for y, bias in zip(found, biases, strict=True))
        store(buffers, "h", rows.start, gelu(a.astype(jnp.float32)).astype(dtype) * b)

    h = launch(
        [(expanded // count, expand)],
        {**entering, "gate": gate, "up": up},
        vector_like("h", expanded, dtype, packed),
        name="step_expand",
        interpret=interpret,
        **launched,
    )
    return project_and_add(x, h, "h", down, name="step_contract", interpret=interpret)["out"]


def project_and_add(
    x, h, name_of_h, layer, beside=(), inputs=None, updates=None, scale=None, *, name, interpret
):
    """x + layer(h), the end of half a residual block.

    Args:
      x: [D].
      h: A dict that holds a vector [F] as `products` reads it.
      name_of_h: The vector's name.
      layer: (weight [D, F], bias [D] or None).
      beside: More parts of the launch, as for `launch`.
      inputs: A dict of what those read.
      updates: A dict of what those overwrite.
      scale: [D], of a norm that comes next.
      name: Of the kernel.
      interpret: Run on any device, slowly, for tests.

    Returns:
      A dict: "out", [D] in the dtype of x, `updates` as they are after, and with `scale` "entering",
      a dict for `mlp_step`.
    """
    width, dtype = x.shape[0], x.dtype
    count, launched = options([layer[0]])
    scales = is_packed(layer[0]) and scale is not None
    entering = entering_like(x, width // count) if scales else {}

    def project(inputs, buffers, i):
        layer, rows = inputs["layer"], pl.ds(i * count, count)
        residual, bias = inputs["residual"][rows], bias_of(layer, rows)
        [y] = products([layer[0]], rows.start, count, inputs, name_of_h, interpret=interpret)
        out = residual + add_bias(y.astype(dtype), bias)
        buffers["out"][rows] = out
        if scales:
            write(buffers, rows, i, out, inputs["next_scale"][rows])

    after = launch(
        [(width // count, project), *beside],
        {
            "residual": x,
            **h,
            "layer": layer,
            "next_scale": scale if scales else None,
            **(inputs or {}),
        },
        {"out": jax.ShapeDtypeStruct((width,), dtype), **entering},
        updates,
        name=name,
        interpret=interpret,
        **launched,
    )
    if scales:
        after["entering"] = {key: after.pop(key) for key in entering}
    elif scale is not None:
        after["entering"] = {"x": after["out"], "scale": scale}
    return after
