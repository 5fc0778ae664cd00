"""The RG-LRU as one Pallas kernel forward and one backward, for GPUs through Triton.

Gates, square root and recurrence are one pass over the inputs: in bfloat16 the forward pass moves
8 bytes per element and the backward pass 16, which is what the arguments and results weigh. A
program owns some channels of one row and walks through time; the loads of several steps are issued
before the first is used, so that they overlap.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

_CHANNELS = 32  # of one program, which is one warp
_PROGRAMS = 512  # fewer leave most of a large GPU idle
_STEPS = 8  # of time, whose loads overlap
_C = 8.0
_MIN_SQUARE = 0.25e-6  # clips the square root's derivative at 1,000


def serves(shape: tuple[int, ...]) -> str | None:
    """None, or the reason why the kernel does not serve inputs of this shape [B, T, R]."""
    batch, time, width = shape
    if width % _CHANNELS:
        return f"recurrence width {width} is not a multiple of {_CHANNELS}"
    if time < _STEPS:
        return f"{time} tokens are fewer than {_STEPS}"
    if batch * width < _PROGRAMS * _CHANNELS:
        return f"{batch} rows of width {width} do not fill a GPU"
    return None


def rg_lru(x, gate_x, gate_a, a_param, hidden, positions, lengths, *, interpret=False):
    """As `griffin_jax.kernels.rg_lru.rg_lru_reference`."""
    time = x.shape[1]
    # What a token does to the state, as factors: a step (1, 0), a reset (0, 1), padding (0, 0).
    real = jnp.arange(time)[None] < lengths[:, None]
    kind = jnp.stack([real & (positions != 0), real & (positions == 0)], axis=1)
    slope = -_C * jax.nn.softplus(a_param.astype(jnp.float32))
    padding = ((0, 0), (0, -time % _STEPS), (0, 0))
    kind = jnp.pad(kind.astype(jnp.float32), ((0, 0), *padding[:2]))
    x, gate_x, gate_a = (jnp.pad(v, padding) for v in (x, gate_x, gate_a))
    h, last = _recurrence(x, gate_x, gate_a, slope, hidden, kind, interpret)
    return h[:, :time], last


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _recurrence(x, gate_x, gate_a, slope, hidden, kind, interpret):
    return _call_forward(x, gate_x, gate_a, slope, hidden, kind, interpret)


def _forward_rule(x, gate_x, gate_a, slope, hidden, kind, interpret):
    h, last = _call_forward(x, gate_x, gate_a, slope, hidden, kind, interpret)
    return (h, last), (x, gate_x, gate_a, slope, hidden, kind, h)


def _backward_rule(interpret, residuals, gradients):
    x, gate_x, gate_a, slope, hidden, kind, h = residuals
    dh, dlast = gradients
    dx, dgate_x, dgate_a, dslope, dhidden = _call_backward(
        x, gate_x, gate_a, slope, hidden, kind, h, dh, dlast, interpret
    )
    return dx, dgate_x, dgate_a, dslope.sum(axis=0), dhidden, None


_recurrence.defvjp(_forward_rule, _backward_rule)


def _gates(gate_x, gate_a, slope, kind):
    """Of one step, in float32: both gates, a, the input's multiplier, and 1 - a^2 unmasked."""
    i = jax.nn.sigmoid(gate_x)
    r = jax.nn.sigmoid(gate_a)
    a = jnp.exp(slope * r)
    square = -jnp.expm1(2 * slope * r)
    step, reset = kind
    a = step * a + (1 - step - reset)
    multiplier = step * jnp.sqrt(square) + reset
    return i, r, a, multiplier, square


def _kind(ref, t):
    return ref[0, t], ref[1, t]


def _forward_kernel(
    x_ref, gate_x_ref, gate_a_ref, slope_ref, hidden_ref, kind_ref, h_ref, last_ref
):
    slope = slope_ref[...]
    inputs = (x_ref, gate_x_ref, gate_a_ref)

    def chunk(n, h):
        t = n * _STEPS
        steps = [
            (*(ref[t + s].astype(jnp.float32) for ref in inputs), _kind(kind_ref, t + s))
            for s in range(_STEPS)
        ]
        for s, (x, gate_x, gate_a, kind) in enumerate(steps):
            i, _, a, multiplier, _ = _gates(gate_x, gate_a, slope, kind)
            h = a * h + multiplier * i * x
            h_ref[t + s] = h.astype(h_ref.dtype)
        return h

    last_ref[...] = jax.lax.fori_loop(0, x_ref.shape[0] // _STEPS, chunk, hidden_ref[...])


def _backward_kernel(
    x_ref,
    gate_x_ref,
    gate_a_ref,
    slope_ref,
    hidden_ref,
    kind_ref,
    h_ref,
    dh_ref,
    dlast_ref,
    dx_ref,
    dgate_x_ref,
    dgate_a_ref,
    dslope_ref,
    dhidden_ref,
):
    slope, hidden = slope_ref[...], hidden_ref[...]
    chunks = x_ref.shape[0] // _STEPS

    def chunk(n, carry):
        g, dslope = carry  # g: what later steps ask of the state
        t = (chunks - 1 - n) * _STEPS
        steps = []
        for s in range(_STEPS):
            step = tuple(
                ref[t + s].astype(jnp.float32) for ref in (x_ref, gate_x_ref, gate_a_ref, dh_ref)
            )
            before = h_ref[jnp.maximum(t + s - 1, 0)].astype(jnp.float32)
            first = (t + s == 0).astype(jnp.float32)
            before = first * hidden + (1 - first) * before
            steps.append((*step, _kind(kind_ref, t + s), before))
        for s in reversed(range(_STEPS)):
            x, gate_x, gate_a, dh, kind, before = steps[s]
            i, r, a, multiplier, square = _gates(gate_x, gate_a, slope, kind)
            g = g + dh
            gm = g * multiplier
            dx_ref[t + s] = (gm * i).astype(dx_ref.dtype)
            dgate_x_ref[t + s] = (gm * x * i * (1 - i)).astype(dgate_x_ref.dtype)
            dmultiplier = g * i * x * jax.lax.rsqrt(jnp.maximum(square, _MIN_SQUARE))
            dlog_a = kind[0] * a * (g * before - a * dmultiplier)
            dgate_a_ref[t + s] = (dlog_a * slope * r * (1 - r)).astype(dgate_a_ref.dtype)
            dslope = dslope + dlog_a * r
            g = a * g
        return g, dslope

    start = (dlast_ref[...], jnp.zeros_like(slope))
    dhidden_ref[...], dslope_ref[...] = jax.lax.fori_loop(0, chunks, chunk, start)


def _specs(time):
    row = pl.BlockSpec((None, time, _CHANNELS), lambda b, c: (b, 0, c))
    state = pl.BlockSpec((None, _CHANNELS), lambda b, c: (b, c))
    channel = pl.BlockSpec((_CHANNELS,), lambda b, c: (c,))
    kind = pl.BlockSpec((None, 2, time), lambda b, c: (b, 0, 0))
    return row, state, channel, kind


def _pallas_call(kernel, shape, in_specs, out_specs, out_shape, interpret):
    batch, _, width = shape
    return pl.pallas_call(
        kernel,
        grid=(batch, width // _CHANNELS),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        compiler_params=plgpu.CompilerParams(num_warps=1, num_stages=1),
        interpret=interpret,
    )


@functools.partial(jax.jit, static_argnames="interpret")
def _call_forward(x, gate_x, gate_a, slope, hidden, kind, interpret):
    row, state, channel, kinds = _specs(x.shape[1])
    return _pallas_call(
        _forward_kernel,
        x.shape,
        [row, row, row, channel, state, kinds],
        [row, state],
        [jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(hidden.shape, jnp.float32)],
        interpret,
    )(x, gate_x, gate_a, slope, hidden, kind)


@functools.partial(jax.jit, static_argnames="interpret")
def _call_backward(x, gate_x, gate_a, slope, hidden, kind, h, dh, dlast, interpret):
    row, state, channel, kinds = _specs(x.shape[1])
    like = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (x, gate_x, gate_a)]
    return _pallas_call(
        _backward_kernel,
        x.shape,
        [row, row, row, channel, state, kinds, row, row, state],
        [row, row, row, state, state],
        [*like, *[jax.ShapeDtypeStruct(hidden.shape, jnp.float32)] * 2],
        interpret,
    )(x, gate_x, gate_a, slope, hidden, kind, h, dh, dlast)
