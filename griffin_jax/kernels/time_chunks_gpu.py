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
_INTERPRETED = {"ex2": jnp.exp2, "rcp": jnp.reciprocal, "sqrt": jnp.sqrt, "rsqrt": lax.rsqrt}


class Chunks:
    """Blocks of arrays as a program sees them, and the launch of all programs.

    Attributes:
      tile: For arrays [B, T / steps, steps, R], as `split` makes them; a kernel reads and writes
        them through its `Chunk`.
      step: For arrays [B, T / steps, steps], as `split` makes them.
      times: For [B, T, R], of which a program sees its channels at all times.
      channel: For [R / each, each].
      state: For [B, R / each, each].
      sums: For [B, T / chunk, R / each, each].
      count: The number of chunks.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        groups: int,
        steps: int,
        each: int = 1,
        *,
        backwards: bool = False,
        interpret: bool = False,
    ):
        """Of inputs [B, T, R]; `groups` times `steps` divides T, and 32 times `each` divides R.

        A group is a warp's, and each lane has `each` neighbouring channels: two where numbers have
        16 bits, as rows of 64 bytes are read at half the speed of 128. Chunks that go backwards in
        time start with the last one.
        """
        self.batch, self.time, self.width = shape
        self.groups, self.steps, self.each = groups, steps, each
        self.backwards, self.interpret = backwards, interpret
        channels = CHANNELS * each
        self.tiles = self.width // channels
        self.count = self.time // (groups * steps)

        def spec(block, index):
            return pl.BlockSpec(block, lambda program: index(*self.place(program)))

        self.tile = spec((None, groups, steps, channels), lambda b, n, c: (b, n, 0, c))
        self.step = spec((None, groups, steps), lambda b, n, c: (b, n, 0))
        self.times = spec((None, self.time, channels), lambda b, n, c: (b, 0, c))
        self.channel = spec((CHANNELS, each), lambda b, n, c: (c, 0))
        self.state = spec((None, CHANNELS, each), lambda b, n, c: (b, c, 0))
        self.sums = spec((None, None, CHANNELS, each), lambda b, n, c: (b, n, c, 0))
        states = (None, self.count + 1, CHANNELS, each)
        self._states = spec(states, lambda b, n, c: (b, 0, c, 0))

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
        """An output float32[B, T / chunk, R / each, each], for sums over chunks."""
        shape = (self.batch, self.count, self.width // self.each, self.each)
        return self.sums, jax.ShapeDtypeStruct(shape, jnp.float32)

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
        states = jnp.concatenate(
            [_bits(initial)[:, None], jnp.full(shape, _EMPTY, jnp.int32)], axis=1
        ).reshape(self.batch, self.count + 1, -1, self.each)
        *results, states = pl.pallas_call(
            body,
            grid=(self.count * self.batch * self.tiles,),
            in_specs=[*(block for block, _ in inputs), self._states],
            out_specs=[*(block for block, _ in outputs), self._states],
            out_shape=[
                *(shape for _, shape in outputs),
                jax.ShapeDtypeStruct(states.shape, states.dtype),
            ],
            input_output_aliases={len(inputs): len(outputs)},
            compiler_params=plgpu.CompilerParams(num_warps=self.groups, num_stages=1),
            interpret=self.interpret,
        )(*(array for _, array in inputs), states)
        last = states[:, -1].reshape(initial.shape)
        return results, lax.bitcast_convert_type(last, jnp.float32)


class Chunk:
    """One program's chunk of time, inside of a kernel.

    What has a value per step and channel is a list, all steps of a lane's first channel and then those
    of its second, each [groups, lanes]: so all there is of a channel's group is in one thread. (Loaded
    as one array and split, it would be moved between threads by the compiler, at several times the
    cost of all the rest.)
    """

    def __init__(self, chunks: Chunks, states_ref):
        program = pl.program_id(0)
        self._steps, self._each = range(chunks.steps), range(chunks.each)
        self._states, self._interpret = states_ref, chunks.interpret
        self._turn = lax.div(program, chunks.tiles * chunks.batch)
        self._group = lax.broadcasted_iota(jnp.int32, (chunks.groups, 1), 0)
        self._begin = chunks.place(program)[1] * (chunks.groups * chunks.steps)
        # A first channel of zero, of which the compiler does not know that it is: else a thread
        # would load more channels at once, and a row would not be one per warp.
        zero = lax.div(program, pl.num_programs(0))
        self._lanes = pl.ds(zero, CHANNELS)
        self._channels = pl.ds(zero * chunks.each, CHANNELS * chunks.each)

    def load(self, ref) -> list[jax.Array]:
        """Of a `Chunks.tile`, in float32."""
        return self._by_channel([self._float32(ref[:, s, self._channels]) for s in self._steps])

    def load_before(self, ref, initial_ref) -> list[jax.Array]:
        """Of `Chunks.times`, what the step before each has; of a `Chunks.state` before all."""
        times = [self._begin + self._group * len(self._steps) + step for step in self._steps]
        rows = [jnp.maximum(time - 1, 0).reshape(-1) for time in times]
        before = self._by_channel([self._float32(ref[row, self._channels]) for row in rows])
        initial = self.load_channels(initial_ref)
        all_of_it = zip(times * len(self._each), initial, before, strict=True)
        return [jnp.where(time == 0, first, value) for time, first, value in all_of_it]

    def load_channels(self, ref) -> list[jax.Array]:
        """Of a `Chunks.channel` or `Chunks.state`, [1, lanes], the same for all steps."""
        return [ref[self._lanes, c][None] for c in self._each for _ in self._steps]

    def load_steps(self, ref) -> list[jax.Array]:
        """Of a `Chunks.step`, [groups, 1], the same for all channels."""
        return [ref[:, step][:, None] for step in self._steps] * len(self._each)

    def store(self, ref, values: list[jax.Array]) -> None:
        """Writes a `Chunks.tile`, rounded to its dtype."""
        for step, value in zip(self._steps, zip(*self._halves(values), strict=True), strict=True):
            value = jnp.stack(value, axis=-1).reshape(-1, ref.shape[2]) if value[1:] else value[0]
            ref[:, step, self._channels] = value.astype(ref.dtype)

    def store_sum(self, ref, values: list[jax.Array]) -> None:
        """Writes sums over the chunk's steps to a `Chunks.sums`."""
        for c, steps in zip(self._each, self._halves(values), strict=True):
            ref[self._lanes, c] = sum(steps[1:], start=steps[0]).sum(axis=0)

    def forwards(self, a: list[jax.Array], x: list[jax.Array]) -> list[jax.Array]:
        """h_t = a_t h_{t-1} + x_t for all steps."""
        channels = []
        for a_c, x_c in zip(self._halves(a), self._halves(x), strict=True):
            decays, states = [], []
            for a_t, x_t in zip(a_c, x_c, strict=True):
                decays.append(a_t * decays[-1] if decays else a_t)
                states.append(self.fma(a_t, states[-1], x_t) if states else x_t)
            channels.append((decays, states, decays[-1], states[-1]))
        return self._finish(channels, range(len(self._group)))

    def backwards(self, a: list[jax.Array], dh: list[jax.Array]) -> list[jax.Array]:
        """g_t = dh_t + a_{t+1} g_{t+1}; what passes on from chunk to chunk is a_t g_t."""
        channels = []
        for a_c, dh_c in zip(self._halves(a), self._halves(dh), strict=True):
            decays, gs = [], []
            decay = added = None
            for a_t, dh_t in zip(reversed(a_c), reversed(dh_c), strict=True):
                gs.append(dh_t if added is None else dh_t + added)
                decays.append(decay)
                added = a_t * gs[-1]
                decay = a_t if decay is None else a_t * decay
            channels.append((decays[::-1], gs[::-1], decay, added))
        return self._finish(channels, range(len(self._group))[::-1])

    def _finish(self, channels, order):
        """Adds to every step what it has of the state that enters its group.

        Args:
          channels: Of each channel of a lane the steps' decays since their group began (None is 1),
            their values without that state, and what a group is in all: decay and added in
            state -> decay * state + added.
          order: The groups in the order in which the state meets them.
        """
        ends = [self._exchange(decay, added, order) for _, _, decay, added in channels]
        entering = [
            self._pass_on(c, *total) for c, (_, _, total) in zip(self._each, ends, strict=True)
        ]
        results = []
        for (decays, values, _, _), (decay, added, _), state in zip(
            channels, ends, entering, strict=True
        ):
            state = self.fma(decay, state[None], added)
            results += [
                v + state if d is None else self.fma(d, state, v)
                for d, v in zip(decays, values, strict=True)
            ]
        return results

    def _exchange(self, decay, added, order):
        """What happens to the state between the chunk's begin and each group, and in all of it."""
        groups, lanes = decay.shape
        decays, adds = (lax.split(v, [1] * groups) for v in (decay, added))
        decay, added = jnp.ones_like(decay), jnp.zeros_like(added)
        total = None
        for group in order:
            if total is None:
                total = decays[group], adds[group]
                continue
            here = self._group == group
            decay, added = jnp.where(here, total[0], decay), jnp.where(here, total[1], added)
            total = decays[group] * total[0], self.fma(decays[group], total[1], adds[group])
        return decay, added, tuple(v.reshape(lanes) for v in total)

    def _pass_on(self, channel, decay, added):
        """The state that enters the chunk, once it is there; gives the next one what leaves."""
        here, after = (
            self._states.at[self._turn + later, self._lanes, pl.ds(channel, 1)] for later in (0, 1)
        )

        def read():
            return plgpu.load(here, volatile=True).reshape(CHANNELS)

        def missing(bits):
            return jnp.max((bits == _EMPTY).astype(jnp.int32)) > 0

        bits = lax.while_loop(missing, lambda _: read(), read())
        state = lax.bitcast_convert_type(bits, jnp.float32)
        after[...] = _bits(self.fma(decay, state, added))[:, None]
        return state

    def instruction(self, name: str, value: jax.Array) -> jax.Array:
        """One of the processor's own approximations, good to the last bit or two of a float32."""
        if self._interpret:
            return _INTERPRETED[name](value)
        return _assembly(f"{name}.approx.ftz.f32 $0, $1;", "=f,f", value)

    def fma(self, a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        """a * b + c in one instruction, which the compiler would not make of it."""
        if self._interpret:
            return a * b + c
        return _assembly("fma.rn.f32 $0, $1, $2, $3;", "=f,f,f,f", *jnp.broadcast_arrays(a, b, c))

    def _float32(self, value):
        """By an instruction of ours: above a conversion of its own Triton moves the exchange of ends
        between the groups, and has every warp work out all of them."""
        if self._interpret or value.dtype != jnp.bfloat16:
            return value.astype(jnp.float32)
        if len(self._each) == 2:
            low, high = "shl.b32 t, $2, 16; mov.b32 $0, t;", "and.b32 t, $2, -65536; mov.b32 $1, t;"
            return _assembly(f"{{ .reg .b32 t; {low} {high} }}", "=f,=f,r", value, pack=2)
        widen = "{ .reg .b32 t; cvt.u32.u16 t, $1; shl.b32 t, t, 16; mov.b32 $0, t; }"
        return _assembly(widen, "=f,h", value)

    def _by_channel(self, steps):
        """[groups, channels] of every step, as a list by channel and step."""
        if len(self._each) == 1:
            return steps
        pairs = [step.reshape(step.shape[0], CHANNELS, len(self._each)) for step in steps]
        halves = [lax.split(pair, [1] * len(self._each), axis=2) for pair in pairs]
        return [half[c].reshape(half[c].shape[:2]) for c in self._each for half in halves]

    def _halves(self, values):
        """A list by channel and step as one by step for every channel."""
        return [values[c * len(self._steps) : (c + 1) * len(self._steps)] for c in self._each]


def _assembly(code, constraints, *arguments, pack=1):
    return plgpu.elementwise_inline_asm(
        code,
        args=arguments,
        constraints=constraints,
        pack=pack,
        result_shape_dtypes=[jax.ShapeDtypeStruct(arguments[0].shape, jnp.float32)],
    )[0]


def _bits(state):
    """Of a float32, never `_EMPTY`."""
    return jnp.where(state == state, lax.bitcast_convert_type(state, jnp.int32), _NAN)
