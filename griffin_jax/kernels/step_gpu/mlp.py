"""A residual MLP's step: norm, gate and up, gelu, down, and the sum with its input."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from griffin_jax.kernels.step_gpu import phases
from griffin_jax.kernels.step_gpu.products import (
    add_bias,
    column_parts,
    hold,
    hold_normed,
    is_packed,
    rows_times,
)

_PROGRAMS = 4  # of a multiprocessor, which a thread's registers allow
_PAIRS = 4  # rows of gate and of up in one turn
_ROWS = 8  # rows of down in one turn
_OUTPUTS = 128  # of the last phase in one turn


def gelu(x):
    """The approximation by tanh, which is a sigmoid of twice the argument."""
    return x * jax.nn.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


# Layers of equal shapes are traced once.
@functools.partial(jax.jit, static_argnames=("eps", "programs", "interpret"))
def mlp_step(x, scale, gate, up, down, *, eps, programs=None, interpret=False):
    """x + down(gelu(gate(n)) * up(n)) of n = norm(x), for one token.

    Args:
      x: [D].
      scale: [D], of the norm.
      gate: (weight [F, D], bias [F] or None).
      up: Likewise.
      down: (weight [D, F], bias [D] or None).
      eps: Of the norm.
      programs: How many share the work; by default as many as run at once.
      interpret: Run on any device, slowly, for tests.

    Returns:
      [D] in the dtype of x.
    """
    width, expanded, dtype = x.shape[0], gate[0].shape[0], x.dtype
    parts = column_parts(expanded)
    inputs = {"x": x, "scale": scale, "gate": gate, "up": up, "down": down}

    def expand(inputs, buffers, program, programs):
        gate, up = inputs["gate"], inputs["up"]
        held = hold_normed(inputs["x"], inputs["scale"], eps, is_packed(gate[0]))

        def turn(i):
            rows = pl.ds(i * _PAIRS, _PAIRS)
            y = [
                rows_times(weight, i * _PAIRS, _PAIRS, held, interpret=interpret).astype(dtype)
                for weight in (gate[0], up[0])
            ]
            y = add_bias(y[0], gate[1], rows), add_bias(y[1], up[1], rows)
            buffers["h"][rows] = gelu(y[0].astype(jnp.float32)).astype(dtype) * y[1]

        phases.each_turn(expanded // _PAIRS, program, programs, 0, turn)

    def contract(inputs, buffers, program, programs):
        down, _ = inputs["down"]
        # As many programs for each part as for the others; those left over have no turn.
        member, part = phases.divide(program, parts)
        members = programs // parts
        column = part * (expanded // parts)

        def load(places):
            return buffers["h"][column + places].astype(jnp.float32)

        held = hold(load, expanded // parts, is_packed(down))

        def turn(i):
            y = rows_times(down, i * _ROWS, _ROWS, held, part, interpret=interpret)
            buffers["sums"][part, pl.ds(i * _ROWS, _ROWS)] = y

        pl.when(member < members)(
            lambda: phases.each_turn(width // _ROWS, member, members, 0, turn)
        )

    def add(inputs, buffers, program, programs):
        def turn(i):
            own = pl.ds(i * _OUTPUTS, _OUTPUTS)
            total = buffers["sums"][0, own]
            for part in range(1, parts):
                total += buffers["sums"][part, own]
            y = add_bias(total.astype(dtype), inputs["down"][1], own)
            buffers["y"][own] = inputs["x"][own] + y

        phases.each_turn(width // _OUTPUTS, program, programs, 0, turn)

    return phases.run(
        [expand, contract, add],
        inputs,
        {
            "y": jax.ShapeDtypeStruct((width,), dtype),
            "h": jax.ShapeDtypeStruct((expanded,), dtype),
            "sums": jax.ShapeDtypeStruct((parts, width), jnp.float32),
        },
        {},
        name="mlp_step",
        programs=programs or phases.num_programs(_PROGRAMS),
        interpret=interpret,
    )["y"]
