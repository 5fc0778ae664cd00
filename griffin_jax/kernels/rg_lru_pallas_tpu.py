"""The RG-LRU as one Pallas kernel forward and one backward, for TPUs.

Gates, square root and recurrence are one pass over the inputs: in bfloat16 the forward pass moves
8 bytes per element and the backward pass 16, which is what the arguments and results weigh. The
grid walks through time last, with the state in a register's row between its steps. Of each eight
steps, which are the sublanes of a register, the recurrence takes three rounds of doubling.

What a token does to the state stands in its recurrence gate: infinity forgets the state, minus
infinity keeps it, so resets and padding cost nothing.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_C = 8.0
_MIN_SQUARE = 0.25e-6  # clips the square root's derivative at 1,000
_LANES = 128
_CHANNELS = 1024  # of a tile, at most
_STEPS = 8  # of time in a register of float32
_ROWS = 16  # of time in a register of bfloat16
_TILE = 256  # steps of a tile
_VMEM = 48 * 2**20


def unsupported_reason(shape: tuple[int, ...]) -> str | None:
    """Returns why inputs of this shape [B, T, R] are not supported; None if they are."""
    _, time, width = shape
    if width % _LANES:
        return f"recurrence width {width} is not a multiple of {_LANES}"
    if time < _STEPS:
        return f"{time} tokens are fewer than {_STEPS}"
    return None


def rg_lru(x, gate_x, gate_a, a_param, hidden, positions, lengths, *, interpret=False):
    """Computes `griffin_jax.kernels.rg_lru.rg_lru_reference`."""
    time = x.shape[1]
    real = jnp.arange(time)[None] < lengths[:, None]
    gate_a = jnp.where((positions == 0)[..., None], jnp.inf, gate_a)
    gate_a = jnp.where(real[..., None], gate_a, -jnp.inf)
    tile = min(_TILE, time + -time % _ROWS)
    padding = ((0, 0), (0, -time % tile), (0, 0))
    x, gate_x = jnp.pad(x, padding), jnp.pad(gate_x, padding)
    gate_a = jnp.pad(gate_a, padding, constant_values=-jnp.inf)
    slope = -_C * jax.nn.softplus(a_param.astype(jnp.float32))[None]
    found: Any = _recurrence(x, gate_x, gate_a, slope, hidden[:, None], interpret)
    h, last = found
    return h[:, :time], last[:, 0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _recurrence(x, gate_x, gate_a, slope, hidden, interpret):
    return _call_forward(x, gate_x, gate_a, slope, hidden, interpret)


def _forward_rule(x, gate_x, gate_a, slope, hidden, interpret):
    h, last = _call_forward(x, gate_x, gate_a, slope, hidden, interpret)
    return (h, last), (x, gate_x, gate_a, slope, hidden, h)


def _backward_rule(interpret, residuals, gradients):
    dx, dgate_x, dgate_a, dslope, dhidden = _call_backward(*residuals, *gradients, interpret)
    return dx, dgate_x, dgate_a, dslope.sum(axis=0), dhidden


_recurrence.defvjp(_forward_rule, _backward_rule)


def _gates(gate_x, gate_a, slope):
    """Returns in float32: both gates, a, the input's multiplier, and 1 - a^2 without resets."""
    i = jax.nn.sigmoid(gate_x)
    r = jax.nn.sigmoid(gate_a)
    log_a = slope * r
    square = _one_minus_exp(2 * log_a)
    reset = gate_a == jnp.inf
    a = jnp.where(reset, 0.0, jnp.exp(log_a))
    multiplier = jnp.where(reset, 1.0, jnp.sqrt(square))
    return i, r, a, multiplier, square


def _one_minus_exp(y):
    """Returns 1 - exp(y) of y <= 0, near zero by its series, since Mosaic has no expm1."""
    series = -y * (1 + y / 2 * (1 + y / 3 * (1 + y / 4 * (1 + y / 5))))
    return jnp.where(y > -0.1, series, 1 - jnp.exp(y))


def _halves(value):
    return value[:_STEPS], value[_STEPS:]


def _scan(a, x, h):
    """h_t = a_t h_{t-1} + x_t over the rows of a and x [8, C], from h [1, C]."""
    row = lax.broadcasted_iota(jnp.int32, a.shape, 0)
    for distance in (1, 2, 4):
        first = row < distance
        x = x + a * jnp.where(first, 0.0, pltpu.roll(x, distance, 0))
        a = a * jnp.where(first, 1.0, pltpu.roll(a, distance, 0))
    return x + a * h


def _scan_back(a, x, g):
    """g_t = a_t g_{t+1} + x_t over the rows of a and x [8, C], from g [1, C]."""
    row = lax.broadcasted_iota(jnp.int32, a.shape, 0)
    for distance in (1, 2, 4):
        last = row >= _STEPS - distance
        x = x + a * jnp.where(last, 0.0, pltpu.roll(x, _STEPS - distance, 0))
        a = a * jnp.where(last, 1.0, pltpu.roll(a, _STEPS - distance, 0))
    return x + a * g


def _forward_kernel(
    x_ref, gate_x_ref, gate_a_ref, slope_ref, hidden_ref, h_ref, last_ref, state_ref
):
    slope = slope_ref[...]

    @pl.when(pl.program_id(2) == 0)
    def _():
        state_ref[...] = hidden_ref[...]

    def chunk(n, h):
        rows = pl.ds(pl.multiple_of(n * _ROWS, _ROWS), _ROWS)
        x, gate_x, gate_a = (
            ref[rows, :].astype(jnp.float32) for ref in (x_ref, gate_x_ref, gate_a_ref)
        )
        i, _, a, multiplier, _ = _gates(gate_x, gate_a, slope)
        states = []
        for a_half, x_half in zip(_halves(a), _halves(multiplier * i * x), strict=True):
            states.append(_scan(a_half, x_half, h))
            h = states[-1][_STEPS - 1 :]
        h_ref[rows, :] = jnp.concatenate(states, axis=0).astype(h_ref.dtype)
        return h

    h = lax.fori_loop(0, x_ref.shape[0] // _ROWS, chunk, state_ref[...])
    state_ref[...] = h
    last_ref[...] = h


def _backward_kernel(
    x_ref,
    gate_x_ref,
    gate_a_ref,
    slope_ref,
    hidden_ref,
    h_ref,
    earlier_ref,  # the end of the tile before
    dh_ref,
    dlast_ref,
    dx_ref,
    dgate_x_ref,
    dgate_a_ref,
    dslope_ref,
    dhidden_ref,
    asked_ref,  # what later steps ask of the state
    slopes_ref,
):
    slope = slope_ref[...]
    step, steps = pl.program_id(2), pl.num_programs(2)
    chunks = x_ref.shape[0] // _ROWS

    @pl.when(step == 0)
    def _():
        asked_ref[...] = dlast_ref[...]
        slopes_ref[...] = jnp.zeros_like(slopes_ref)

    begin = jnp.where(
        step == steps - 1, hidden_ref[...], earlier_ref[_ROWS - 1 :, :].astype(jnp.float32)
    )

    def chunk(n, carry):
        asked, dslope = carry
        n = chunks - 1 - n
        rows = pl.ds(pl.multiple_of(n * _ROWS, _ROWS), _ROWS)
        x, gate_x, gate_a, h, dh = (
            ref[rows, :].astype(jnp.float32)
            for ref in (x_ref, gate_x_ref, gate_a_ref, h_ref, dh_ref)
        )
        previous = pl.ds(pl.multiple_of(jnp.maximum(n - 1, 0) * _ROWS, _ROWS), _ROWS)
        entering = jnp.where(n == 0, begin, h_ref[previous, :].astype(jnp.float32)[_ROWS - 1 :])
        first = lax.broadcasted_iota(jnp.int32, h.shape, 0) == 0
        before = jnp.where(first, entering, pltpu.roll(h, 1, 0))

        i, r, a, multiplier, square = _gates(gate_x, gate_a, slope)
        asking = []
        for a_half, dh_half in zip(_halves(a)[::-1], _halves(dh)[::-1], strict=True):
            # A step asks of the state before it a_t g_t; the last row's a is in `asked` already.
            last = lax.broadcasted_iota(jnp.int32, a_half.shape, 0) == _STEPS - 1
            next_a = jnp.where(last, 1.0, pltpu.roll(a_half, _STEPS - 1, 0))
            asking.insert(0, _scan_back(next_a, dh_half, asked))
            asked = a_half[:1] * asking[0][:1]
        g = jnp.concatenate(asking, axis=0)

        gm = g * multiplier
        dx_ref[rows, :] = (gm * i).astype(dx_ref.dtype)
        dgate_x_ref[rows, :] = (gm * x * i * (1 - i)).astype(dgate_x_ref.dtype)
        dmultiplier = g * i * x * lax.rsqrt(jnp.maximum(square, _MIN_SQUARE))
        dlog_a = a * (g * before - a * dmultiplier)
        dgate_a_ref[rows, :] = (dlog_a * slope * r * (1 - r)).astype(dgate_a_ref.dtype)
        return asked, dslope + jnp.sum(dlog_a * r, axis=0, keepdims=True)

    asked, dslope = lax.fori_loop(0, chunks, chunk, (asked_ref[...], slopes_ref[...]))
    asked_ref[...], slopes_ref[...] = asked, dslope
    dhidden_ref[...], dslope_ref[...] = asked, dslope


def _tiling(x):
    batch, time, width = x.shape
    channels = max(c for c in range(_LANES, _CHANNELS + 1, _LANES) if width % c == 0)
    tile = min(_TILE, time)
    return tile, channels, (batch, width // channels, time // tile)


def _parameters():
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=_VMEM
    )


@functools.partial(jax.jit, static_argnames="interpret")
def _call_forward(x, gate_x, gate_a, slope, hidden, interpret):
    tile, channels, grid = _tiling(x)
    row = pl.BlockSpec((None, tile, channels), lambda b, c, t: (b, t, c))
    state = pl.BlockSpec((None, 1, channels), lambda b, c, t: (b, 0, c))
    channel = pl.BlockSpec((1, channels), lambda b, c, t: (0, c))
    return pl.pallas_call(
        _forward_kernel,
        grid=grid,
        in_specs=[row, row, row, channel, state],
        out_specs=[row, state],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct(hidden.shape, jnp.float32),
        ],
        scratch_shapes=[pltpu.VMEM((1, channels), jnp.float32)],
        compiler_params=_parameters(),
        name="rg_lru",
        interpret=interpret,
    )(x, gate_x, gate_a, slope, hidden)


@functools.partial(jax.jit, static_argnames="interpret")
def _call_backward(x, gate_x, gate_a, slope, hidden, h, dh, dlast, interpret):
    tile, channels, grid = _tiling(x)
    tiles = grid[2]
    row = pl.BlockSpec((None, tile, channels), lambda b, c, t: (b, tiles - 1 - t, c))
    earlier = pl.BlockSpec(
        (None, _ROWS, channels),
        lambda b, c, t: (b, jnp.maximum((tiles - 1 - t) * (tile // _ROWS) - 1, 0), c),
    )
    state = pl.BlockSpec((None, 1, channels), lambda b, c, t: (b, 0, c))
    channel = pl.BlockSpec((1, channels), lambda b, c, t: (0, c))
    like = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (x, gate_x, gate_a)]
    return pl.pallas_call(
        _backward_kernel,
        grid=grid,
        in_specs=[row, row, row, channel, state, row, earlier, row, state],
        out_specs=[row, row, row, state, state],
        out_shape=[*like, *[jax.ShapeDtypeStruct(hidden.shape, jnp.float32)] * 2],
        scratch_shapes=[pltpu.VMEM((1, channels), jnp.float32)] * 2,
        compiler_params=_parameters(),
        name="rg_lru_backward",
        interpret=interpret,
    )(x, gate_x, gate_a, slope, hidden, h, h, dh, dlast)
