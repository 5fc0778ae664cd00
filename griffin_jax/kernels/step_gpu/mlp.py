"""A residual MLP's step: norm, gate and up, gelu in one launch, down and the sum in another."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from griffin_jax.kernels.step_gpu.launch import launch
from griffin_jax.kernels.step_gpu.products import add_bias, is_packed, num_warps, products

_PAIRS = 4  # rows of gate and of up of a program
ROWS = 4  # of a weight of a program, for other products


def gelu(x):
    """The approximation by tanh, which is a sigmoid of twice the argument."""
    return x * jax.nn.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


# Layers of equal shapes are traced once.
@functools.partial(jax.jit, static_argnames=("eps", "interpret"))
def mlp_step(x, scale, gate, up, down, *, eps, interpret=False):
    """x + down(gelu(gate(n)) * up(n)) of n = norm(x), for one token.

    Args:
      x: [D].
      scale: [D], of the norm.
      gate: (weight [F, D], bias [F] or None).
      up: Likewise.
      down: (weight [D, F], bias [D] or None).
      eps: Of the norm.
      interpret: Run on any device, slowly, for tests.

    Returns:
      [D] in the dtype of x.
    """
    width, expanded, dtype = x.shape[0], gate[0].shape[0], x.dtype
    packed = is_packed(gate[0])

    def expand(inputs, buffers, i):
        (gate, gate_bias), (up, up_bias) = inputs["gate"], inputs["up"]
        rows = pl.ds(i * _PAIRS, _PAIRS)
        norm = inputs["scale"], eps
        a, b = products((gate, up), rows.start, _PAIRS, inputs["x"], norm, interpret=interpret)
        a = add_bias(a.astype(dtype), gate_bias, rows)
        b = add_bias(b.astype(dtype), up_bias, rows)
        buffers["h"][rows] = gelu(a.astype(jnp.float32)).astype(dtype) * b

    h = launch(
        [(expanded // _PAIRS, expand)],
        {"x": x, "scale": scale, "gate": gate, "up": up},
        {"h": jax.ShapeDtypeStruct((expanded,), dtype)},
        name="step_expand",
        num_warps=num_warps(width, packed),
        interpret=interpret,
    )["h"]
    return project_and_add(x, h, down, name="step_contract", interpret=interpret)


def project_and_add(x, h, layer, beside=(), inputs=None, updates=None, *, name, interpret):
    """x + layer(h), the end of half a residual block.

    Args:
      x: [D].
      h: [F].
      layer: (weight [D, F], bias [D] or None).
      beside: More parts of the launch, as for `launch`.
      inputs: A dict of what those read.
      updates: A dict of what those overwrite.
      name: Of the kernel.
      interpret: Run on any device, slowly, for tests.

    Returns:
      [D] in the dtype of x; with `updates`, a dict of it, as "out", and of these.
    """
    width, dtype = x.shape[0], x.dtype

    def project(inputs, buffers, i):
        weight, bias = inputs["layer"]
        rows = pl.ds(i * ROWS, ROWS)
        [y] = products([weight], rows.start, ROWS, inputs["h"], interpret=interpret)
        buffers["out"][rows] = inputs["x"][rows] + add_bias(y.astype(dtype), bias, rows)

    after = launch(
        [(width // ROWS, project), *beside],
        {"x": x, "h": h, "layer": layer, **(inputs or {})},
        {"out": jax.ShapeDtypeStruct((width,), dtype)},
        updates,
        name=name,
        num_warps=num_warps(h.shape[0], is_packed(layer[0])),
        interpret=interpret,
    )
    return after if updates else after["out"]
