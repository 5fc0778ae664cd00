"""Reading many tokens into a state, in calls of a few fixed lengths."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.config import GriffinConfig
from griffin_jax.models import AttentionState, Griffin, State, init_state

CHUNKS = (32, 256, 2048)
_TOKENS_PER_CALL = 8192  # bounds the memory of a large batch's activations


def batch_size_for(rows: int) -> int:
    """The batch size that `rows` rows run in: the next power of two, to compile few programs."""
    return 1 << max(rows - 1, 0).bit_length()


def chunk_lengths(total: int, batch_size: int, chunks: Sequence[int] | None = None) -> list[int]:
    """Lengths of the calls that read `total` tokens of a batch.

    All come from `chunks` (ascending; `CHUNKS` by default), so that a prompt of any length runs in
    programs compiled before. Less than half of any call is padding, but for calls of the shortest
    length.
    """
    chunks = CHUNKS if chunks is None else chunks
    allowed = [c for c in chunks if c * batch_size <= _TOKENS_PER_CALL] or chunks[:1]
    lengths = []
    while total > 0:
        lengths.append(max((c for c in allowed if c < 2 * total), default=allowed[0]))
        total -= lengths[-1]
    return lengths


def check_tokens(tokens: Sequence[int], vocab_size: int, name: str) -> None:
    """Raises ValueError when there is no token, or one outside the vocabulary."""
    if not len(tokens):
        raise ValueError(f"{name} is empty; give at least one token")
    for token in tokens:
        if not 0 <= token < vocab_size or token != int(token):
            raise ValueError(f"{name} holds token {token}; ids are 0 to {vocab_size - 1}")


def pad(rows: Sequence[Sequence[int]], batch_size: int, begin: int, length: int):
    """Tokens begin : begin + length of each row, int32[B, T], and how many those are, int32[B].

    Rows beyond `rows` are all padding.
    """
    tokens = np.zeros((batch_size, length), np.int32)
    lengths = np.zeros(batch_size, np.int32)
    for i, row in enumerate(rows):
        part = row[begin : begin + length]
        tokens[i, : len(part)] = part
        lengths[i] = len(part)
    return tokens, lengths


def read(model: Griffin, params: dict, state: State, rows: Sequence[Sequence[int]]) -> State:
    """The state after each row's tokens, however many; `state` is donated.

    Args:
      model: The model.
      params: Its parameters.
      state: Of a batch of at least len(rows).
      rows: Token ids of each row; an empty one leaves that row's state as it is.
    """
    batch_size = len(state.position)
    begin = 0
    for length in chunk_lengths(max(map(len, rows), default=0), batch_size):
        _, state = read_chunk(model, params, state, *pad(rows, batch_size, begin, length))
        begin += length
    return state


@functools.partial(jax.jit, static_argnames="model", donate_argnames="state")
def read_chunk(model, params, state, tokens, lengths):
    """What the output head reads, [B, T, D], and the state after tokens int32[B, T] of `pad`."""
    return model.apply({"params": params}, tokens, state, lengths=lengths, method="features")


def fresh_state(model: Griffin, params: dict, batch_size: int, tokens: int) -> State:
    """The state before the first token, beside the parameters.

    Args:
      model: The model.
      params: Its parameters.
      batch_size: Number of rows.
      tokens: How many tokens the state will read; it matters under an unbounded window only.
    """
    capacity = _capacity(model.config, tokens)
    return _init_program(model.config, batch_size, model.dtype, capacity, home(params))()


def select_rows(
    model: Griffin, params: dict, state: State, rows: Sequence[int], tokens: int
) -> State:
    """A copy of some rows of `state`, with room for `tokens` tokens in all."""
    capacity = _capacity(model.config, tokens)
    return take_rows(jax.device_put(state, home(params)), np.asarray(rows, np.int32), capacity)


def home(params: dict) -> jax.sharding.Sharding:
    """Where the arrays belong that go with `params`: on their device, or on all of their mesh.

    Arrays that are committed to it from the start spare jit a second compilation.
    """
    sharding = jax.tree.leaves(params)[0].sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding


def _capacity(config: GriffinConfig, tokens: int) -> int | None:
    return batch_size_for(max(tokens, 256)) if config.attention_window is None else None


@functools.lru_cache(maxsize=64)
def _init_program(config, batch_size, dtype, capacity, sharding):
    build = functools.partial(init_state, config, batch_size, dtype, capacity)
    return jax.jit(build, out_shardings=sharding)


@functools.partial(jax.jit, static_argnames="capacity")
def take_rows(state: State, rows: np.ndarray, capacity: int | None = None) -> State:
    """A copy of the rows int32[B], with at least `capacity` slots under an unbounded window."""

    def take(block):
        block = jax.tree.map(lambda x: x[rows], block)
        if isinstance(block, AttentionState) and capacity and block.keys.shape[1] < capacity:
            # The ring of an unbounded window has never wrapped: position p stands in slot p.
            room = ((0, 0), (0, capacity - block.keys.shape[1]), (0, 0), (0, 0))
            block = jax.tree.map(lambda x: jnp.pad(x, room), block)
        return block

    return State(position=state.position[rows], blocks=tuple(map(take, state.blocks)))
