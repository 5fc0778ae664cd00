"""The RG-LRU as one Pallas kernel forward and one backward, for GPUs through Triton.

Gates, square root and recurrence are one pass over the inputs: in bfloat16 the forward pass moves
8 bytes per element and the backward pass 16, which is what the arguments and results weigh.

A program owns the channels of one row that a warp has lanes for, and walks through time by tiles.
Of a tile every warp takes a group of consecutive steps: each lane runs through its channel's as if
the state before them were zero, keeping for every step the state and the decay since the group began.
The ends of the groups then pass between the warps through memory, and give the state that enters
each. The inputs of the next tile are on their way all the while.

What a token does to the state stands in its shift, which is added to log2(a): nothing at a step,
minus enough for a = 0 at a reset, plus enough for a = 1, the largest there is, at padding. The
multiplier sqrt(1 - a^2) is then 1 at a reset and 0 at padding, as it should be.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

_CHANNELS = 32  # of one program, one for each lane
_GROUPS = 8  # of a tile, one for each warp
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
    if width % _CHANNELS:
        return f"recurrence width {width} is not a multiple of {_CHANNELS}"
    if time < _BACKWARD_STEPS:
        return f"{time} tokens are fewer than {_BACKWARD_STEPS}"
    if batch * (width // _CHANNELS) < _FEW:
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


def _split(tile):
    """The steps of a tile [groups, steps, channels], each [groups, 1, channels]."""
    return lax.split(tile, [1] * tile.shape[1], axis=1)


def _join(steps):
    """What `_split` took apart, by halves, as Triton can."""
    count, (groups, _, channels) = len(steps), steps[0].shape
    while len(steps) > 1:
        half = len(steps) // 2
        steps = [jnp.stack(pair, axis=-1) for pair in zip(steps[:half], steps[half:], strict=True)]
    return steps[0].reshape(groups, channels, count).transpose(0, 2, 1)


class _Tiles:
    """Where a program finds the tiles of its row and channels."""

    def __init__(self, ref, interpret):
        blocks, self.steps, channels = ref.shape
        self.count = blocks // _GROUPS
        # A first channel of zero, of which the compiler does not know that it is: else a thread
        # would load several channels at once, and steps would be spread over threads.
        self.lanes = pl.ds(lax.div(pl.program_id(1), pl.num_programs(1)), channels)
        self.group = lax.broadcasted_iota(jnp.int32, (_GROUPS, 1, 1), 0)
        self.interpret = interpret

    def at(self, n):
        """Index of a tile; beyond the last that is loaded, the last."""
        return pl.ds(jnp.clip(n, 0, self.count - 1) * _GROUPS, _GROUPS)

    def load(self, refs, n):
        return tuple(ref[self.at(n), :, self.lanes] for ref in refs)

    def entering(self, n, decay, added, state, ends_ref, order):
        """The state that enters each group, and the one that leaves the last.

        Args:
          n: The tile's number.
          decay: [groups, 1, channels]; each group is state -> decay * state + added.
          added: [groups, 1, channels].
          state: [channels], what enters the first.
          ends_ref: Room for two tiles' ends, so that one barrier a tile is enough.
          order: The groups in the order in which the state meets them.
        """
        slot = n & 1
        ends_ref[slot, 0] = decay.reshape(ends_ref.shape[2:])
        ends_ref[slot, 1] = added.reshape(ends_ref.shape[2:])
        if not self.interpret:
            plgpu.debug_barrier()
        enters = jnp.zeros_like(decay)
        for group in order:
            enters = jnp.where(self.group == group, state[None, None], enters)
            decay, added = (ends_ref[slot, i, group, self.lanes] for i in range(2))
            state = decay * state + added
        return enters, state


def _forward_kernel(
    x_ref,
    gate_x_ref,
    gate_a_ref,
    slope_ref,
    hidden_ref,
    shift_ref,
    h_ref,
    last_ref,
    ends_ref,
    *,
    interpret,
):
    tiles = _Tiles(x_ref, interpret)
    slope = slope_ref[tiles.lanes][None, None]

    def load(n):
        return *tiles.load((x_ref, gate_x_ref, gate_a_ref), n), shift_ref[tiles.at(n)]

    def tile(n, carry):
        state, (x, gate_x, gate_a, shift) = carry
        following = load(n + 1)
        x, gate_x, gate_a = (v.astype(jnp.float32) for v in (x, gate_x, gate_a))
        _, log_a, a = _decay(gate_a, slope, shift[:, :, None], interpret)
        multiplier = _instruction("sqrt", _square(log_a, a), interpret)
        decays, states = [], []
        gated = multiplier * _sigmoid(gate_x, interpret) * x
        for a_t, h_t in zip(_split(a), _split(gated), strict=True):
            decays.append(a_t * decays[-1] if decays else a_t)
            states.append(a_t * states[-1] + h_t if states else h_t)
        enters, state = tiles.entering(n, decays[-1], states[-1], state, ends_ref, range(_GROUPS))
        h = _join(states) + _join(decays) * enters
        h_ref[tiles.at(n), :, tiles.lanes] = h.astype(h_ref.dtype)
        return state, following

    carry = (hidden_ref[tiles.lanes], load(0))
    last_ref[tiles.lanes], _ = lax.fori_loop(0, tiles.count, tile, carry)


def _backward_kernel(
    x_ref,
    gate_x_ref,
    gate_a_ref,
    slope_ref,
    hidden_ref,
    shift_ref,
    h_ref,
    dh_ref,
    dlast_ref,
    dx_ref,
    dgate_x_ref,
    dgate_a_ref,
    dslope_ref,
    dhidden_ref,
    ends_ref,
    *,
    interpret,
):
    tiles = _Tiles(x_ref, interpret)
    slope, hidden = (ref[tiles.lanes][None, None] for ref in (slope_ref, hidden_ref))
    grid = (_GROUPS, tiles.steps)
    step = tiles.steps * lax.broadcasted_iota(jnp.int32, grid, 0)
    step += lax.broadcasted_iota(jnp.int32, grid, 1)

    def load(n):
        inputs = tiles.load((x_ref, gate_x_ref, gate_a_ref, dh_ref), n)
        before = jnp.maximum(n * step.size + step - 1, 0)
        return *inputs, h_ref[before, tiles.lanes], shift_ref[tiles.at(n)]

    def tile(turn, carry):
        # `asked` is what the steps after the tile ask of the state that leaves it.
        asked, dslope, (x, gate_x, gate_a, dh, before, shift) = carry
        n = tiles.count - 1 - turn
        following = load(jnp.maximum(n - 1, 0))
        x, gate_x, gate_a, dh, before = (
            v.astype(jnp.float32) for v in (x, gate_x, gate_a, dh, before)
        )
        before = jnp.where((n * step.size + step)[:, :, None] == 0, hidden, before)
        shift = shift[:, :, None]
        r, log_a, a = _decay(gate_a, slope, shift, interpret)
        # The gradient of every step's state, g, but for what is asked of the group's last one.
        decays, gs = [jnp.ones((_GROUPS, 1, x.shape[2]))], []
        added = jnp.zeros_like(decays[0])
        for a_t, dh_t in zip(reversed(_split(a)), reversed(_split(dh)), strict=True):
            gs.append(dh_t + added)
            added = a_t * gs[-1]
            decays.append(a_t * decays[-1])
        asks, asked = tiles.entering(
            n, decays.pop(), added, asked, ends_ref, reversed(range(_GROUPS))
        )
        g = _join(gs[::-1]) + _join(decays[::-1]) * asks

        i = _sigmoid(gate_x, interpret)
        square = _square(log_a, a)
        gm = g * _instruction("sqrt", square, interpret)
        slant = _instruction("rsqrt", jnp.maximum(square, _MIN_SQUARE), interpret)
        dlog_a = a * g * (before - a * i * x * slant)
        dlog_a = jnp.where(shift > 0, 0.0, _LN2 * dlog_a)
        dgate_a = dlog_a * slope * r * (1 - r)
        gradients = gm * i, gm * x * i * (1 - i), dgate_a
        for ref, gradient in zip((dx_ref, dgate_x_ref, dgate_a_ref), gradients, strict=True):
            ref[tiles.at(n), :, tiles.lanes] = gradient.astype(ref.dtype)
        return asked, dslope + (dlog_a * r).sum(axis=1), following

    dslope = jnp.zeros((_GROUPS, x_ref.shape[2]))
    carry = (dlast_ref[tiles.lanes], dslope, load(tiles.count - 1))
    asked, dslope, _ = lax.fori_loop(0, tiles.count, tile, carry)
    dhidden_ref[tiles.lanes], dslope_ref[:, tiles.lanes] = asked, dslope


class _Launch:
    """Blocks of arrays as one program sees them, and the launch of one per row and channels."""

    def __init__(self, shape, steps, interpret):
        self.batch, self.time, self.width = shape
        self.steps, self.interpret = steps, interpret
        self.blocks = (self.batch, self.time // steps, steps)
        self.row = pl.BlockSpec((None, *self.blocks[1:], _CHANNELS), lambda b, c: (b, 0, 0, c))
        self.times = pl.BlockSpec((None, self.time, _CHANNELS), lambda b, c: (b, 0, c))
        self.shift = pl.BlockSpec((None, *self.blocks[1:]), lambda b, c: (b, 0, 0))
        self.channel = pl.BlockSpec((_CHANNELS,), lambda b, c: (c,))
        self.state = pl.BlockSpec((None, _CHANNELS), lambda b, c: (b, c))
        self.groups = pl.BlockSpec((None, _GROUPS, _CHANNELS), lambda b, c: (b, 0, c))
        ends = (2, 2, _GROUPS, _CHANNELS)
        self.ends = pl.BlockSpec((None, None, *ends), lambda b, c: (b, c, 0, 0, 0, 0))
        self.programs = (self.batch, self.width // _CHANNELS)
        self.ends_shape = jax.ShapeDtypeStruct((*self.programs, *ends), jnp.float32)

    def split(self, x):
        """Steps by groups: [B, groups, steps of one, ...]."""
        return x.reshape(*self.blocks, *x.shape[2:])

    def shaped(self, *shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((*shape, self.width), dtype)

    def __call__(self, kernel, in_specs, out_specs, out_shape):
        return pl.pallas_call(
            functools.partial(kernel, interpret=self.interpret),
            grid=self.programs,
            in_specs=in_specs,
            out_specs=[*out_specs, self.ends],
            out_shape=[*out_shape, self.ends_shape],
            compiler_params=plgpu.CompilerParams(num_warps=_GROUPS * _CHANNELS // 32, num_stages=1),
            interpret=self.interpret,
        )


@functools.partial(jax.jit, static_argnames="interpret")
def _call_forward(x, gate_x, gate_a, slope, hidden, shift, interpret):
    """h and the last state."""
    on = _Launch(x.shape, _STEPS, interpret)
    h, last, _ = on(
        _forward_kernel,
        [*[on.row] * 3, on.channel, on.state, on.shift],
        [on.row, on.state],
        [on.shaped(*on.blocks, dtype=x.dtype), on.shaped(on.batch)],
    )(*map(on.split, (x, gate_x, gate_a)), slope, hidden, on.split(shift))
    return h.reshape(x.shape), last


@functools.partial(jax.jit, static_argnames="interpret")
def _call_backward(x, gate_x, gate_a, slope, hidden, shift, h, dh, dlast, interpret):
    on = _Launch(x.shape, _BACKWARD_STEPS, interpret)
    rows = [on.row] * 3
    *gradients, dslope, dhidden, _ = on(
        _backward_kernel,
        [*rows, on.channel, on.state, on.shift, on.times, on.row, on.state],
        [*rows, on.groups, on.state],
        [
            *[on.shaped(*on.blocks, dtype=v.dtype) for v in (x, gate_x, gate_a)],
            on.shaped(on.batch, _GROUPS),
            on.shaped(on.batch),
        ],
    )(
        *map(on.split, (x, gate_x, gate_a)),
        slope,
        hidden,
        on.split(shift),
        h,
        on.split(dh),
        dlast,
    )
    return *(v.reshape(x.shape) for v in gradients), dslope.sum(axis=1), dhidden
