"""Recurrences over time in one pass on a GPU: a program for every chunk of it, through Triton.

A program loads one chunk of time of 32 channels. Of that every warp takes a group of consecutive
steps: each lane runs through its channel's as if the state before them were zero, and keeps for
every step the state and the decay since the group began. The groups' ends pass through shared
memory. Then the program waits for the state that the chunk before it leaves, passes on its own, and
writes its steps. Bytes are kept in flight by many programs a multiprocessor, not by prefetching.

The wait is for one word of memory per channel, which holds either the state or `EMPTY`: no flag, no
fence, and one instruction between reading a state and writing the next. It ends because programs
start in the order of their numbers, as all single-pass scans on GPUs assume, and a chunk's number is
above that of the one before it.

Under `jax.vmap` such a launch would get a further axis of its grid, in whose order programs no longer
start. So what is mapped becomes more rows of one launch; see `mapped_as_rows`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from griffin_jax.kernels import triton

CHANNELS = 32  # of one program, one for each lane
_FEW = 16  # programs leave most of a GPU idle
EMPTY = -1  # the bits of a NaN which no arithmetic makes
NAN = 0x7FC00000
_MAPPED_OVER = [1]
_INTERPRETED = {"ex2": jnp.exp2, "rcp": jnp.reciprocal, "sqrt": jnp.sqrt, "rsqrt": lax.rsqrt}


def unsupported_reason(shape: tuple[int, int, int], steps: int) -> str | None:
    """Returns why chunks of at least `steps` steps do not support inputs [B, T, R]; None if they do."""
    return triton.missing() or unsupported_shape(shape, steps)


def unsupported_shape(shape: tuple[int, int, int], steps: int) -> str | None:
    """Returns what `unsupported_reason` does, but for whether this JAX has Triton."""
    batch, time, width = shape
    if width % CHANNELS:
        return f"recurrence width {width} is not a multiple of {CHANNELS}"
    if time < steps:
        return f"{time} tokens are fewer than {steps}"
    if batch * _MAPPED_OVER[-1] * (width // CHANNELS) < _FEW:
        return f"{batch} rows of width {width} do not fill a GPU"
    return None


@contextlib.contextmanager
def mapped_over(count: int) -> Iterator[None]:
    """Says that programs traced in the block are mapped over so many, whose rows are one launch."""
    _MAPPED_OVER.append(count)
    try:
        yield
    finally:
        _MAPPED_OVER.pop()


def mapped_as_rows(function: Callable) -> Callable:
    """Gives a function of arrays that all have rows as their first axis a rule for `jax.vmap`.

    Where it is mapped, it is called once, with the rows of every element behind one another. An array
    with fewer rows than the others, such as [1, R] beside [B, T, R], has one for as many of theirs, in
    their order, which is what it has then, too.

    Args:
      function: Takes and returns arrays; results have as many rows as one of the arguments.
    """
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def rule(size, batched, *arguments):
        def rows(x, is_mapped):
            x = x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        found = mapped(*map(rows, arguments, batched))
        found = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), found)
        return found, jax.tree.map(lambda _: True, found)

    return functools.wraps(function)(lambda *arguments: mapped(*arguments))


class Chunks:
    """Blocks of arrays as a program sees them, and the launch of all programs.

    Attributes:
      tile: For arrays [B, T / steps, steps, R], as `split` makes them; a kernel reads and writes
        them through its `Chunk`.
      step: For arrays [B, T / steps, steps], as `split` makes them.
      times: For [B, T, R], of which a program sees its channels at all times.
      channel: For [S, R], where S divides B: a row for each B / S rows.
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
        channel_rows: int = 1,
        backward: bool = False,
        interpret: bool = False,
    ):
        """Plans chunks of inputs [B, T, R], in which `groups` times `steps` divides T and 32 divides R.

        A group is a warp's. Chunks that go backward in time start with the last one. `channel_rows`
        is S of `channel`.
        """
        self.batch, self.time, self.width = shape
        self.groups, self.steps = groups, steps
        self.backward, self.interpret = backward, interpret
        self.tiles = self.width // CHANNELS
        self.count = self.time // (groups * steps)

        def spec(block, index):
            return pl.BlockSpec(block, lambda program: index(*self.place(program)))

        self.tile = spec((None, groups, steps, CHANNELS), lambda b, n, c: (b, n, 0, c))
        self.step = spec((None, groups, steps), lambda b, n, c: (b, n, 0))
        self.times = spec((None, self.time, CHANNELS), lambda b, n, c: (b, 0, c))
        rows = self.batch // channel_rows
        self.channel = spec((None, CHANNELS), lambda b, n, c: (lax.div(b, rows), c))
        self.state = spec((None, CHANNELS), lambda b, n, c: (b, c))
        self.sums = spec((None, None, CHANNELS), lambda b, n, c: (b, n, c))
        self._states = spec((None, self.count + 1, CHANNELS), lambda b, n, c: (b, 0, c))

    def place(self, program):
        """Returns the row, chunk and tile of channels of a program."""
        row = lax.rem(lax.div(program, self.tiles), self.batch)
        turn = lax.div(program, self.tiles * self.batch)
        chunk = self.count - 1 - turn if self.backward else turn
        return row, chunk, lax.rem(program, self.tiles)

    def split(self, x: jax.Array) -> jax.Array:
        """Returns [B, T, ...] as [B, T / steps, steps, ...]."""
        return x.reshape(self.batch, -1, self.steps, *x.shape[2:])

    def like(self, x: jax.Array) -> tuple[pl.BlockSpec, jax.ShapeDtypeStruct]:
        """Returns an output of the inputs' shape, in x's dtype."""
        shape = (self.batch, self.time // self.steps, self.steps, self.width)
        return self.tile, jax.ShapeDtypeStruct(shape, x.dtype)

    def summed(self) -> tuple[pl.BlockSpec, jax.ShapeDtypeStruct]:
        """Returns an output float32[B, T / chunk, R], for sums over chunks."""
        return self.sums, jax.ShapeDtypeStruct((self.batch, self.count, self.width), jnp.float32)

    def __call__(self, kernel: Callable, inputs: list, outputs: list, initial: jax.Array):
        """Runs a kernel that calls `Chunk.forward` or `Chunk.backward` once.

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
            [bits_of(initial)[:, None], jnp.full(shape, EMPTY, jnp.int32)], axis=1
        )
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
            compiler_params=triton.CompilerParams(num_warps=self.groups, num_stages=1),
            interpret=self.interpret,
        )(*(array for _, array in inputs), states)
        return results, lax.bitcast_convert_type(states[:, -1], jnp.float32)


class Chunk:
    """One program's chunk of time, inside of a kernel.

    What has a value per step and channel is a list of the group's steps, each [groups, channels], so
    that all there is of a channel's group is in one thread. (Loaded as one array and split, it would
    be moved between threads by the compiler, at several times the cost of all the rest.)

    Attributes:
      steps: range of the steps of a group.
      lanes: The channels, of any block.
    """

    def __init__(self, chunks: Chunks, states_ref):
        program = pl.program_id(0)
        self.steps = range(chunks.steps)
        self._states, self._interpret = states_ref, chunks.interpret
        self._turn = lax.div(program, chunks.tiles * chunks.batch)
        self._group = lax.broadcasted_iota(jnp.int32, (chunks.groups, 1), 0)
        self._begin = chunks.place(program)[1] * (chunks.groups * chunks.steps)
        # A first channel of zero, of which the compiler does not know that it is: else a thread
        # would load several channels at once, and a row would not be one per warp.
        self.lanes = pl.ds(lax.div(program, pl.num_programs(0)), CHANNELS)

    def load(self, ref) -> list[jax.Array]:
        """Returns the steps of a `Chunks.tile`, in float32."""
        return [self._float32(ref[:, step, self.lanes]) for step in self.steps]

    def load_before(self, ref, initial: jax.Array) -> list[jax.Array]:
        """Returns of `Chunks.times` what the step before each has; `initial`, [channels], before all."""
        steps = []
        for step in self.steps:
            time = self._begin + self._group * len(self.steps) + step
            before = ref[jnp.maximum(time - 1, 0).reshape(-1), self.lanes]
            steps.append(jnp.where(time == 0, initial[None], self._float32(before)))
        return steps

    def store(self, ref, values: list[jax.Array]) -> None:
        """Writes steps of a `Chunks.tile`, rounded to its dtype."""
        for step, value in zip(self.steps, values, strict=True):
            ref[:, step, self.lanes] = value.astype(ref.dtype)

    def forward(self, a: list[jax.Array], x: list[jax.Array]) -> list[jax.Array]:
        """Returns h of h_t = a_t h_{t-1} + x_t for all steps."""
        decays, states = [], []
        for a_t, x_t in zip(a, x, strict=True):
            decays.append(a_t * decays[-1] if decays else a_t)
            states.append(self.fma(a_t, states[-1], x_t) if states else x_t)
        enters = self._entering(decays[-1], states[-1], range(len(self._group)))
        return [self.fma(d, enters, h) for d, h in zip(decays, states, strict=True)]

    def backward(self, a: list[jax.Array], dh: list[jax.Array]) -> list[jax.Array]:
        """Returns g of g_t = dh_t + a_{t+1} g_{t+1}; what passes on from chunk to chunk is a_t g_t."""
        decays, gs = [], []
        decay = added = None
        for a_t, dh_t in zip(reversed(a), reversed(dh), strict=True):
            gs.append(dh_t if added is None else dh_t + added)
            decays.append(decay)
            added = a_t * gs[-1]
            decay = a_t if decay is None else a_t * decay
        asks = self._entering(decay, added, reversed(range(len(self._group))))
        pairs = zip(reversed(decays), reversed(gs), strict=True)
        return [g + asks if d is None else self.fma(d, asks, g) for d, g in pairs]

    def instruction(self, name: str, value: jax.Array) -> jax.Array:
        """Returns one of the processor's own approximations, good to the last bit or two of a
        float32.
        """
        if self._interpret:
            return _INTERPRETED[name](value)
        return _assembly(f"{name}.approx.ftz.f32 $0, $1;", "=f,f", value)

    def fma(self, a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        """Returns a * b + c in one instruction, which the compiler would not make of it."""
        if self._interpret:
            return a * b + c
        return _assembly("fma.rn.f32 $0, $1, $2, $3;", "=f,f,f,f", *jnp.broadcast_arrays(a, b, c))

    def _entering(self, decay, added, order):
        """Returns the state that enters each group, [groups, channels]; passes on the last one's.

        Args:
          decay: [groups, channels]; each group is state -> decay * state + added.
          added: [groups, channels].
          order: The groups in the order in which the state meets them.
        """
        groups, channels = decay.shape
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
        state = self._wait()
        leaves = self.fma(total[0].reshape(channels), state, total[1].reshape(channels))
        self._states[self._turn + 1, self.lanes] = bits_of(leaves)
        return self.fma(decay, state[None], added)

    def _wait(self):
        """Returns the state that enters the chunk, once it is there.

        32 words are one for each lane: so every warp reads all of them and decides for itself. With
        more, several warps would decide together, by what some of them have read.
        """

        def read():
            return triton.load(self._states.at[self._turn, self.lanes], volatile=True)

        def missing(bits):
            return jnp.max((bits == EMPTY).astype(jnp.int32)) > 0

        bits = lax.while_loop(missing, lambda _: read(), read())
        return lax.bitcast_convert_type(bits, jnp.float32)

    def _float32(self, value):
        """By an instruction of ours: above a conversion of its own Triton moves the exchange of ends
        between the groups, and has every warp work out all of them."""
        if self._interpret or value.dtype != jnp.bfloat16:
            return value.astype(jnp.float32)
        widen = "{ .reg .b32 t; cvt.u32.u16 t, $1; shl.b32 t, t, 16; mov.b32 $0, t; }"
        return _assembly(widen, "=f,h", value)


def _assembly(code, constraints, *arguments):
    return triton.elementwise_inline_asm(
        code,
        args=arguments,
        constraints=constraints,
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(arguments[0].shape, jnp.float32)],
    )[0]


def bits_of(state):
    """Returns the bits of a float32, which are never `EMPTY`."""
    return jnp.where(state == state, lax.bitcast_convert_type(state, jnp.int32), NAN)
