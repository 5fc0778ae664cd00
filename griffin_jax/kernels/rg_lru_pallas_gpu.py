"""The RG-LRU as one Pallas kernel forward and one backward, for GPUs through Triton.

Gates, square root and recurrence are one pass over the inputs: in bfloat16 the forward pass moves
8 bytes per element and the backward pass 16, which is what the arguments and results weigh.

`time_chunks_gpu` says how the state passes from chunk to chunk of time.

What a token does to the state stands in its shift, which is added to log2(a): nothing at a step,
minus enough for a = 0 at a reset, plus enough for a = 1, the largest there is, at padding. The
multiplier sqrt(1 - a^2) is then 1 at a reset and 0 at padding, as it should be.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from griffin_jax.kernels import time_chunks_gpu
from griffin_jax.kernels.time_chunks_gpu import Chunks, mapped_as_rows

_GROUPS = 8  # of a chunk of time, one for each warp
_STEPS = 16  # of a group, which is what registers hold, forward
_BACKWARD_STEPS = 8  # and backward
_C = 8.0
MIN_SQUARE = 0.25e-6  # clips the square root's derivative at 1,000
_LN2 = math.log(2)
RESET, PADDING = -200.0, 1e30


def unsupported_reason(shape: tuple[int, ...]) -> str | None:
    """Returns why inputs of this shape [B, T, R] are not supported; None if they are."""
    return time_chunks_gpu.unsupported_reason(shape, _BACKWARD_STEPS)


def slope_of(a_param):
    """Returns float32[1, R]: log2(a) is this times sigmoid(gate_a)."""
    return (-_C / _LN2 * jax.nn.softplus(a_param.astype(jnp.float32)))[None]


def rg_lru(x, gate_x, gate_a, a_param, hidden, positions, lengths, *, interpret=False):
    """Computes `griffin_jax.kernels.rg_lru.rg_lru_reference`.

    Args:
      x: [B, T, R]; this and the next six as there.
      gate_x: [B, T, R].
      gate_a: [B, T, R].
      a_param: [R].
      hidden: float32[B, R].
      positions: int32[B, T].
      lengths: int32[B].
      interpret: Run on any device, slowly, for tests.
    """
    time = x.shape[1]
    slope = slope_of(a_param)
    real = jnp.arange(time)[None] < lengths[:, None]
    shift = jnp.where(real, jnp.where(positions == 0, RESET, 0.0), PADDING)
    padding = ((0, 0), (0, -time % (_GROUPS * _STEPS)), (0, 0))
    shift = jnp.pad(shift, padding[:2], constant_values=PADDING)
    x, gate_x, gate_a = (jnp.pad(v, padding) for v in (x, gate_x, gate_a))
    found: Any = _recurrence(x, gate_x, gate_a, slope, hidden, shift, interpret)
    h, last = found
    return h[:, :time], last


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _recurrence(x, gate_x, gate_a, slope, hidden, shift, interpret):
    return _forward(interpret)(x, gate_x, gate_a, slope, hidden, shift)


def _forward_rule(x, gate_x, gate_a, slope, hidden, shift, interpret):
    h, last = _forward(interpret)(x, gate_x, gate_a, slope, hidden, shift)
    return (h, last), (x, gate_x, gate_a, slope, hidden, shift, h)


def _backward_rule(interpret, residuals, gradients):
    return *_backward(interpret)(*residuals, *gradients), None


_recurrence.defvjp(_forward_rule, _backward_rule)


def _sigmoid(chunk, value):
    return chunk.instruction("rcp", 1 + chunk.instruction("ex2", value * (-1 / _LN2)))


def _decay(chunk, gate_a, slope, shift):
    """Returns the recurrence gate, log2(a) and a."""
    r = _sigmoid(chunk, gate_a)
    log_a = jnp.minimum(chunk.fma(slope, r, shift), 0.0)
    return r, log_a, chunk.instruction("ex2", log_a)


def _square(chunk, log_a, a):
    """Returns 1 - a^2; near a = 1 as -2 a sinh(log a) by its series, which loses no bits."""
    z = log_a * log_a
    series = chunk.fma(z, jnp.full_like(z, -(_LN2**5) / 60), jnp.full_like(z, -(_LN2**3) / 3))
    series = a * log_a * chunk.fma(z, series, jnp.full_like(z, -2 * _LN2))
    return jnp.where(log_a > -0.375, series, chunk.fma(-a, a, jnp.ones_like(a)))


def _shifts(chunk, shift_ref):
    """Returns the shift of every step, [groups, 1]."""
    return [shift_ref[:, step][:, None] for step in chunk.steps]


def _forward_kernel(chunk, x_ref, gate_x_ref, gate_a_ref, slope_ref, shift_ref, h_ref):
    inputs = map(chunk.load, (x_ref, gate_x_ref, gate_a_ref))
    slope = slope_ref[chunk.lanes][None]
    decays, entering = [], []
    for x, gate_x, gate_a, shift in zip(*inputs, _shifts(chunk, shift_ref), strict=True):
        _, log_a, a = _decay(chunk, gate_a, slope, shift)
        multiplier = chunk.instruction("sqrt", _square(chunk, log_a, a))
        decays.append(a)
        entering.append(multiplier * _sigmoid(chunk, gate_x) * x)
    chunk.store(h_ref, chunk.forward(decays, entering))


def _backward_kernel(
    chunk,
    x_ref,
    gate_x_ref,
    gate_a_ref,
    dh_ref,
    slope_ref,
    shift_ref,
    h_ref,
    hidden_ref,
    dx_ref,
    dgate_x_ref,
    dgate_a_ref,
    dslope_ref,
):
    xs, gates_x, gates_a, dh = map(chunk.load, (x_ref, gate_x_ref, gate_a_ref, dh_ref))
    hs_before = chunk.load_before(h_ref, hidden_ref[chunk.lanes])
    slope, shifts = slope_ref[chunk.lanes][None], _shifts(chunk, shift_ref)
    gates = [_decay(chunk, gate, slope, shift) for gate, shift in zip(gates_a, shifts, strict=True)]
    gs = chunk.backward([a for _, _, a in gates], dh)

    dx, dgate_x, dgate_a = [], [], []
    dslope: Any = 0.0
    steps = zip(xs, gates_x, gates, gs, hs_before, shifts, strict=True)
    for x, gate_x, (r, log_a, a), g, before, shift in steps:
        i = _sigmoid(chunk, gate_x)
        square = _square(chunk, log_a, a)
        gm = g * chunk.instruction("sqrt", square)
        slant = chunk.instruction("rsqrt", jnp.maximum(square, MIN_SQUARE))
        dlog_a = a * g * (before - a * i * x * slant)
        dlog_a = jnp.where(shift > 0, 0.0, _LN2 * dlog_a)
        dx.append(gm * i)
        dgate_x.append(gm * x * i * (1 - i))
        dgate_a.append(dlog_a * slope * r * (1 - r))
        dslope += dlog_a * r
    for ref, steps in zip((dx_ref, dgate_x_ref, dgate_a_ref), (dx, dgate_x, dgate_a), strict=True):
        chunk.store(ref, steps)
    dslope_ref[chunk.lanes] = dslope.sum(axis=0)


@functools.cache
def _forward(interpret):
    """Returns what computes h and the last state of arguments with slope [S, R], where S divides B."""

    @mapped_as_rows
    @jax.jit
    def call(x, gate_x, gate_a, slope, hidden, shift):
        chunks = Chunks(x.shape, _GROUPS, _STEPS, channel_rows=len(slope), interpret=interpret)
        inputs = [(chunks.tile, chunks.split(v)) for v in (x, gate_x, gate_a)]
        inputs += [(chunks.channel, slope), (chunks.step, chunks.split(shift))]
        (h,), last = chunks(_forward_kernel, inputs, [chunks.like(x)], hidden)
        return h.reshape(x.shape), last

    return call


@functools.cache
def _backward(interpret):
    """Returns what computes the gradients of the first five arguments."""

    @mapped_as_rows
    @jax.jit
    def call(x, gate_x, gate_a, slope, hidden, shift, h, dh, dlast):
        options = {"channel_rows": len(slope), "backward": True, "interpret": interpret}
        chunks = Chunks(x.shape, _GROUPS, _BACKWARD_STEPS, **options)
        inputs = [(chunks.tile, chunks.split(v)) for v in (x, gate_x, gate_a, dh)]
        inputs += [(chunks.channel, slope), (chunks.step, chunks.split(shift))]
        inputs += [(chunks.times, h), (chunks.state, hidden)]
        outputs = [*map(chunks.like, (x, gate_x, gate_a)), chunks.summed()]
        (*gradients, dslope), dhidden = chunks(_backward_kernel, inputs, outputs, dlast)
        dslope = dslope.reshape(len(slope), -1, dslope.shape[-1]).sum(axis=1)
        return *(v.reshape(x.shape) for v in gradients), dslope, dhidden

    return call
