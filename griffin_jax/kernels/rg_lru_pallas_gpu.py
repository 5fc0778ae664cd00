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

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plgpu

from griffin_jax.kernels.time_chunks_gpu import CHANNELS, Chunks

_GROUPS = 8  # of a chunk of time, one for each warp
_STEPS = 16  # of a group, which is what registers hold, forward
_BACKWARD_STEPS = 8  # and backward
_FEW = 16  # programs leave most of a GPU idle
_C = 8.0
_MIN_SQUARE = 0.25e-6  # clips the square root's derivative at 1,000
_LN2 = math.log(2)
_RESET, _PADDING = -200.0, 1e30
_INTERPRETED = {"ex2": jnp.exp2, "rcp": jnp.reciprocal, "sqrt": jnp.sqrt, "rsqrt": lax.rsqrt}


def serves(shape: tuple[int, ...]) -> str | None:
    """None, or the reason why the kernel does not serve inputs of this shape [B, T, R]."""
    batch, time, width = shape
    if width % CHANNELS:
        return f"recurrence width {width} is not a multiple of {CHANNELS}"
    if time < _BACKWARD_STEPS:
        return f"{time} tokens are fewer than {_BACKWARD_STEPS}"
    if batch * (width // CHANNELS) < _FEW:
        return f"{batch} rows of width {width} do not fill a GPU"
    return None


def rg_lru(x, gate_x, gate_a, a_param, hidden, positions, lengths, *, interpret=False):
    """As `griffin_jax.kernels.rg_lru.rg_lru_reference`.

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
    real = jnp.arange(time)[None] < lengths[:, None]
    shift = jnp.where(real, jnp.where(positions == 0, _RESET, 0.0), _PADDING)
    slope = -_C / _LN2 * jax.nn.softplus(a_param.astype(jnp.float32))
    padding = ((0, 0), (0, -time % (_GROUPS * _STEPS)), (0, 0))
    shift = jnp.pad(shift, padding[:2], constant_values=_PADDING)
    x, gate_x, gate_a = (jnp.pad(v, padding) for v in (x, gate_x, gate_a))
    h, last = _recurrence(x, gate_x, gate_a, slope, hidden, shift, interpret)
    return h[:, :time], last


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _recurrence(x, gate_x, gate_a, slope, hidden, shift, interpret):
    return _call_forward(x, gate_x, gate_a, slope, hidden, shift, interpret)


def _forward_rule(x, gate_x, gate_a, slope, hidden, shift, interpret):
    h, last = _call_forward(x, gate_x, gate_a, slope, hidden, shift, interpret)
    return (h, last), (x, gate_x, gate_a, slope, hidden, shift, h)


def _backward_rule(interpret, residuals, gradients):
    dx, dgate_x, dgate_a, dslope, dhidden = _call_backward(*residuals, *gradients, interpret)
    return dx, dgate_x, dgate_a, dslope.sum(axis=0), dhidden, None


_recurrence.defvjp(_forward_rule, _backward_rule)


def _instruction(name, value, interpret):
    """One of the processor's own approximations, good to the last bit or two of a float32."""
    if interpret:
        return _INTERPRETED[name](value)
    return plgpu.elementwise_inline_asm(
        f"{name}.approx.ftz.f32 $0, $1;",
        args=[value],
        constraints="=f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(value.shape, jnp.float32)],
    )[0]


def _sigmoid(value, interpret):
    power = _instruction("ex2", value * (-1 / _LN2), interpret)
    return _instruction("rcp", 1 + power, interpret)


def _decay(gate_a, slope, shift, interpret):
    """The recurrence gate, log2(a) and a."""
    r = _sigmoid(gate_a, interpret)
    log_a = jnp.minimum(slope * r + shift, 0.0)
    return r, log_a, _instruction("ex2", log_a, interpret)


def _square(log_a, a):
    """1 - a^2; near a = 1 as -2 a sinh(log a) by its series, which loses no bits."""
    z = log_a * log_a
    series = a * log_a * (-2 * _LN2 + z * (-(_LN2**3) / 3 + z * (-(_LN2**5) / 60)))
    return jnp.where(log_a > -0.375, series, 1 - a * a)


def _forward_kernel(
    chunk, x_ref, gate_x_ref, gate_a_ref, slope_ref, shift_ref, h_ref, *, interpret
):
    x, gate_x, gate_a = chunk.load(x_ref, gate_x_ref, gate_a_ref)
    slope, shift = slope_ref[chunk.lanes][None, None], shift_ref[...][:, :, None]
    _, log_a, a = _decay(gate_a, slope, shift, interpret)
    multiplier = _instruction("sqrt", _square(log_a, a), interpret)
    chunk.store(h_ref, chunk.forwards(a, multiplier * _sigmoid(gate_x, interpret) * x))


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
    *,
    interpret,
):
    x, gate_x, gate_a, dh = chunk.load(x_ref, gate_x_ref, gate_a_ref, dh_ref)
    before = chunk.load_before(h_ref, hidden_ref[chunk.lanes])
    slope, shift = slope_ref[chunk.lanes][None, None], shift_ref[...][:, :, None]
    r, log_a, a = _decay(gate_a, slope, shift, interpret)
    g = chunk.backwards(a, dh)

    i = _sigmoid(gate_x, interpret)
    square = _square(log_a, a)
    gm = g * _instruction("sqrt", square, interpret)
    slant = _instruction("rsqrt", jnp.maximum(square, _MIN_SQUARE), interpret)
    dlog_a = a * g * (before - a * i * x * slant)
    dlog_a = jnp.where(shift > 0, 0.0, _LN2 * dlog_a)
    chunk.store(dx_ref, gm * i)
    chunk.store(dgate_x_ref, gm * x * i * (1 - i))
    chunk.store(dgate_a_ref, dlog_a * slope * r * (1 - r))
    dslope_ref[chunk.lanes] = (dlog_a * r).sum(axis=1).sum(axis=0)


@functools.partial(jax.jit, static_argnames="interpret")
def _call_forward(x, gate_x, gate_a, slope, hidden, shift, interpret):
    """h and the last state."""
    chunks = Chunks(x.shape, _GROUPS, _STEPS, interpret=interpret)
    inputs = [(chunks.tile, chunks.split(v)) for v in (x, gate_x, gate_a)]
    inputs += [(chunks.channel, slope), (chunks.step, chunks.split(shift))]
    kernel = functools.partial(_forward_kernel, interpret=interpret)
    (h,), last = chunks(kernel, inputs, [chunks.like(x)], hidden)
    return h.reshape(x.shape), last


@functools.partial(jax.jit, static_argnames="interpret")
def _call_backward(x, gate_x, gate_a, slope, hidden, shift, h, dh, dlast, interpret):
    chunks = Chunks(x.shape, _GROUPS, _BACKWARD_STEPS, backwards=True, interpret=interpret)
    inputs = [(chunks.tile, chunks.split(v)) for v in (x, gate_x, gate_a, dh)]
    inputs += [(chunks.channel, slope), (chunks.step, chunks.split(shift))]
    inputs += [(chunks.times, h), (chunks.state, hidden)]
    outputs = [*map(chunks.like, (x, gate_x, gate_a)), chunks.summed()]
    kernel = functools.partial(_backward_kernel, interpret=interpret)
    (*gradients, dslope), dhidden = chunks(kernel, inputs, outputs, dlast)
    return *(v.reshape(x.shape) for v in gradients), dslope.sum(axis=1), dhidden
