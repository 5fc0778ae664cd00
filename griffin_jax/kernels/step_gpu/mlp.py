"""A residual MLP's step: norm, gate and up, gelu in one phase, down and the sum in another."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from griffin_jax.kernels.step_gpu.launch import Body, Phase, divide
from griffin_jax.kernels.step_gpu.norm import Norm
from griffin_jax.kernels.step_gpu.products import (
    add_bias,
    bias_of,
    part,
    rows_of,
    start_matvec,
    store,
    vector_like,
)
from griffin_jax.quantization.tensor import is_packed


def gelu(x):
    """Computes the approximation by tanh, which is a sigmoid of twice the argument."""
    return x * jax.nn.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


def mlp_phases(x: jax.ShapeDtypeStruct, norm: Norm, gate, up, down, *, interpret) -> list:
    """Returns the phases of out = x + down(gelu(gate(n)) * up(n)), n = norm(x), for one token.

    Args:
      x: What the vector under `norm.of` is, [D].
      norm: Its norm, which an earlier phase has begun where weights are in 4 bits.
      gate: (weight [F, D], bias [F] or None).
      up: Likewise.
      down: (weight [D, F], bias [D] or None).
      interpret: Run on any device, slowly, for tests.

    Returns:
      Phases, of which the last writes "out", [D] in the dtype of x.
    """
    expanded, dtype = gate[0].shape[0], x.dtype

    def expand(refs, row, count, wait):
        layers = refs["gate"], refs["up"]
        rows = pl.ds(row, count)
        weights = [weight for weight, _ in layers]
        biases = [bias_of(layer, rows) for layer in layers]
        compute = start_matvec(
            weights, row, count, refs, norm.vector, norm.factor, interpret=interpret
        )
        wait()
        a, b = (add_bias(y.astype(dtype), bias) for y, bias in zip(compute(), biases, strict=True))
        store(refs, "h", row, gelu(a.astype(jnp.float32)).astype(dtype) * b)

    return [
        Phase(
            [part([gate[0], up[0]], expand)],
            {"gate": gate, "up": up},
            vector_like("h", expanded, dtype, is_packed(gate[0])),
        ),
        project_and_add(
            x, down, name="down", residual=norm.of, h="h", out="out", interpret=interpret
        ),
    ]


def project_and_add(
    x: jax.ShapeDtypeStruct,
    layer,
    norm: Norm | None = None,
    beside: Sequence[tuple[int, Body]] = (),
    updates=None,
    *,
    name: str,
    residual: str,
    h: str,
    out: str,
    interpret: bool,
) -> Phase:
    """Returns the phase of out = residual + layer(h), which ends half a residual block.

    Args:
      x: An array of the residual's shape and dtype, [D].
      layer: (weight [D, F], bias [D] or None).
      norm: The norm of the result; for 4-bit weights it is begun here.
      beside: More parts of the phase.
      updates: What those overwrite, a dict.
      name: The name of the layer.
      residual: The name of a vector [D].
      h: The name of a vector [F] as `start_matvec` takes it.
      out: The name of what comes of it.
      interpret: Run on any device, slowly, for tests.
    """
    norm = norm if is_packed(layer[0]) else None
    programs = x.shape[0] // rows_of([layer[0]])[0]

    def project(refs, row, count, wait):
        rows = pl.ds(row, count)
        bias = bias_of(refs[name], rows)
        compute = start_matvec([refs[name][0]], row, count, refs, h, interpret=interpret)
        wait()
        before = refs[residual][rows]
        [y] = compute()
        after = before + add_bias(y.astype(x.dtype), bias)
        refs[out][rows] = after
        if norm is not None:
            norm.write(refs, rows, divide(row, count)[0], after)

    outputs = {out: jax.ShapeDtypeStruct(x.shape, x.dtype)}
    if norm is not None:
        outputs |= norm.like(x, programs)
    return Phase(
        [part([layer[0]], project), *beside],
        {name: layer},
        outputs,
        updates or {},
    )
