"""Recurrences over time in one pass on a GPU: a program for every chunk of it, through Triton.

A program loads one chunk of time of 32 channels. Of that every warp takes a group of consecutive
steps: each lane runs through its channel's as if the state before them were zero, and keeps for
every step the state and the decay since the group began. The groups' ends pass through shared
memory. Then the program waits for the state that the chunk before it leaves, passes on its own, and
writes its steps. Bytes are kept in flight by many programs a multiprocessor, not by prefetching.

The wait is for one word of memory per channel, which holds either the state or `_EMPTY`: no flag, no
fence, and one instruction between reading a state and writing the next. It ends because programs
start in the order of their numbers, as all single-pass scans on GPUs assume, and a chunk's number is
above that of the one before it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

CHANNELS = 32  # of one program, one for each lane
_EMPTY = -1  # the bits of a NaN which no arithmetic makes
_NAN = 0x7FC00000


class Chunks:
    """Blocks of arrays as a program sees them, and the launch of all programs.

    Attributes:
      tile: For arrays [B, T / steps, steps, R], as `split` makes them; a kernel reads and writes
        them through its `Chunk`.
      step: For arrays [B, T / steps, steps], as `split` makes them.
      times: For [B, T, R], of which a program sees its channels at all times.
      channel: For [R].
      state: For [B, R].
      sums: For [B, T / chunk, R], of which a program sees the channels of its chunk.
      count: The number of chunks.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        groups: int,
        steps: int,
        *,
        backwards: bool = False,
        interpret: bool = False,
    ):
        """Of inputs [B, T, R], in which `groups` times `steps` divides T and 32 divides R.

        A group is a warp's. Chunks that go backwards in time start with the last one.
        """
        self.batch, self.time, self.width = shape
        self.groups, self.steps = groups, steps
        self.backwards, self.interpret = backwards, interpret
        self.tiles = self.width // CHANNELS
        self.count = self.time // (groups * steps)

        def spec(block, index):
            return pl.BlockSpec(block, lambda program: index(*self.place(program)))

        self.tile = spec((None, groups, steps, CHANNELS), lambda b, n, c: (b, n, 0, c))
        self.step = spec((None, groups, steps), lambda b, n, c: (b, n, 0))
        self.times = spec((None, self.time, CHANNELS), lambda b, n, c: (b, 0, c))
        self.channel = spec((CHANNELS,), lambda b, n, c: (c,))
        self.state = spec((None, CHANNELS), lambda b, n, c: (b, c))
        self.sums = spec((None, None, CHANNELS), lambda b, n, c: (b, n, c))
        self._states = spec((None, self.count + 1, CHANNELS), lambda b, n, c: (b, 0, c))

    def place(self, program):
        """Row, chunk and tile of channels of a program."""
        row = lax.rem(lax.div(program, self.tiles), self.batch)
        turn = lax.div(program, self.tiles * self.batch)
        chunk = self.count - 1 - turn if self.backwards else turn
        return row, chunk, lax.rem(program, self.tiles)

    def split(self, x: jax.Array) -> jax.Array:
        """[B, T, ...] as [B, T / steps, steps, ...]."""
        return x.reshape(self.batch, -1, self.steps, *x.shape[2:])

    def like(self, x: jax.Array) -> tuple[pl.BlockSpec, jax.ShapeDtypeStruct]:
        """An output of the inputs' shape, in x's dtype."""
        shape = (self.batch, self.time // self.steps, self.steps, self.width)
        return self.tile, jax.ShapeDtypeStruct(shape, x.dtype)

    def summed(self) -> tuple[pl.BlockSpec, jax.ShapeDtypeStruct]:
        """An output float32[B, T / chunk, R], for sums over chunks."""
        return self.sums, jax.ShapeDtypeStruct((self.batch, self.count, self.width), jnp.float32)

    def __call__(self, kernel: Callable, inputs: list, outputs: list, initial: jax.Array):
        """Runs a kernel that calls `Chunk.forwards` or `Chunk.backwards` once.

        Args:
          kernel: Called with a `Chunk` and the references to inputs and outputs.
          inputs: Pairs of a block and an array.
          outputs: Pairs of a block and a shape.
          initial: float32[B, R], what enters the chunk that comes first.

        Returns:
          The outputs, and float32[B, R], what leaves the chunk that comes last.
        """

        def body(*refs):
            states = refs[-1]
            kernel(Chunk(self, states), *refs[: len(inputs)], *refs[len(inputs) + 1 : -1])

        shape = (self.batch, self.count, self.width)
        states = jnp.concatenate([_bits(initial)[:, None], jnp.full(shape, _EMPTY)], axis=1)
        *results, states = pl.pallas_call(
            body,
            grid=(self.count * self.batch * self.tiles,),
            in_specs=[*(block for block, _ in inputs), self._states],
            out_specs=[*(block for block, _ in outputs), self._states],
            out_shape=[*(shape for _, shape in outputs), jax.typeof(states)],
            input_output_aliases={len(inputs): len(outputs)},
            compiler_params=plgpu.CompilerParams(num_warps=self.groups, num_stages=1),
            interpret=self.interpret,
        )(*(array for _, array in inputs), states)
        return results, lax.bitcast_convert_type(states[:, -1], jnp.float32)


class Chunk:
    """One program's chunk of time, inside of a kernel.

    Attributes:
      time: int32[groups, steps], the steps' places in time.
      lanes: The channels, of any block.
    """

    def __init__(self, chunks: Chunks, states_ref):
        program = pl.program_id(0)
        self._states, self._interpret = states_ref, chunks.interpret
        self._turn = lax.div(program, chunks.tiles * chunks.batch)
        self._group = lax.broadcasted_iota(jnp.int32, (chunks.groups, 1, 1), 0)
        grid = (chunks.groups, chunks.steps)
        self.time = chunks.place(program)[1] * (chunks.groups * chunks.steps)
        self.time += chunks.steps * lax.broadcasted_iota(jnp.int32, grid, 0)
        self.time += lax.broadcasted_iota(jnp.int32, grid, 1)
        # A first channel of zero, of which the compiler does not know that it is: else a thread
        # would load several channels at once, and steps would be spread over threads.
        self.lanes = pl.ds(lax.div(program, pl.num_programs(0)), CHANNELS)

    def load(self, *refs) -> tuple[jax.Array, ...]:
        """float32[groups, steps, channels] of each."""
        return tuple(self._float32(ref[:, :, self.lanes]) for ref in refs)

    def load_before(self, ref, initial: jax.Array) -> jax.Array:
        """As `load` of a block of all times, but every step sees what the one before it has; the very first
        sees `initial`, [channels]."""
        before = self._float32(ref[jnp.maximum(self.time - 1, 0), self.lanes])
        return jnp.where(self.time[:, :, None] == 0, initial[None, None], before)

    def store(self, ref, value: jax.Array) -> None:
        """Writes [groups, steps, channels], rounded to the reference's dtype."""
        ref[:, :, self.lanes] = value.astype(ref.dtype)

    def forwards(self, a: jax.Array, x: jax.Array) -> jax.Array:
        """h_t = a_t h_{t-1} + x_t; all float32[groups, steps, channels]."""
        decays, states = [], []
        for a_t, x_t in zip(_split(a), _split(x), strict=True):
            decays.append(a_t * decays[-1] if decays else a_t)
            states.append(a_t * states[-1] + x_t if states else x_t)
        enters = self._entering(decays[-1], states[-1], range(a.shape[0]))
        return _join(states) + _join(decays) * enters

    def backwards(self, a: jax.Array, dh: jax.Array) -> jax.Array:
        """g_t = dh_t + a_{t+1} g_{t+1}; what passes on from chunk to chunk is a_t g_t."""
        decays, gs = [jnp.ones((a.shape[0], 1, a.shape[2]))], []
        added = jnp.zeros_like(decays[0])
        for a_t, dh_t in zip(reversed(_split(a)), reversed(_split(dh)), strict=True):
            gs.append(dh_t + added)
            added = a_t * gs[-1]
            decays.append(a_t * decays[-1])
        enters = self._entering(decays.pop(), added, reversed(range(a.shape[0])))
        return _join(gs[::-1]) + _join(decays[::-1]) * enters

    def _entering(self, decay, added, order):
        """The state that enters each group, [groups, 1, channels]; passes on the last one's.

        Args:
          decay: [groups, 1, channels]; each group is state -> decay * state + added.
          added: [groups, 1, channels].
          order: The groups in the order in which the state meets them.
        """
        groups, _, channels = decay.shape
        decays, adds = (_split(v.reshape(1, groups, channels)) for v in (decay, added))
        decay, added = jnp.ones_like(decay), jnp.zeros_like(added)
        total = None
        for group in order:
            if total is None:
                total = decays[group], adds[group]
                continue
            here = self._group == group
            decay, added = jnp.where(here, total[0], decay), jnp.where(here, total[1], added)
            total = decays[group] * total[0], decays[group] * total[1] + adds[group]
        state = self._wait()
        leaves = total[0].reshape(channels) * state + total[1].reshape(channels)
        self._states[self._turn + 1, self.lanes] = _bits(leaves)
        return decay * state[None, None] + added

    def _wait(self):
        """The state that enters the chunk, once it is there."""

        def read():
            return plgpu.load(self._states.at[self._turn, self.lanes], volatile=True)

        def missing(bits):
            return jnp.max((bits == _EMPTY).astype(jnp.int32)) > 0

        bits = lax.while_loop(missing, lambda _: read(), read())
        return lax.bitcast_convert_type(bits, jnp.float32)

    def _float32(self, value):
        """By an instruction of ours: above a conversion of its own Triton moves the exchange of ends
        between the groups, and has every warp work out all of them."""
        if self._interpret or value.dtype != jnp.bfloat16:
            return value.astype(jnp.float32)
        return plgpu.elementwise_inline_asm(
            "{ .reg .b32 t; cvt.u32.u16 t, $1; shl.b32 t, t, 16; mov.b32 $0, t; }",
            args=[value],
            constraints="=f,h",
            pack=1,
            result_shape_dtypes=[jax.ShapeDtypeStruct(value.shape, jnp.float32)],
        )[0]


def _bits(state):
    """Of a float32, never `_EMPTY`."""
    return jnp.where(state == state, lax.bitcast_convert_type(state, jnp.int32), _NAN)


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
