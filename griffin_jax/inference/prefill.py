"""Reading many tokens into a state, in calls of a few fixed lengths."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax import inputs
from griffin_jax.config import GriffinConfig
from griffin_jax.devices import activation_spec
from griffin_jax.models import AttentionState, Griffin, init_state
from griffin_jax.models.stack import AnyState, StackedState, is_stacked, stack_state
from griffin_jax.sharding import (
    a_leaf,
    batch_shards,
    check_batch,
    jit_on_mesh,
    mesh_of_all,
    tree_shardings,
)
from griffin_jax.sharding.layouts import constrain_state

CHUNKS = (32, 256, 512, 2048)
# A GPU reads one text in calls of this length, too. One takes less time than two of half its length:
# weights of 16 bits are read once, and those of 4 bits decoded once.
_LONG = 4096
_TOKENS_PER_CALL = 8192  # bounds the memory of a large batch's activations
# A call reads, and decodes, every weight. On a CPU that takes the time of about as many tokens.
_CALL_ON_CPU = 32


def batch_size_for(rows: int, params: dict | None = None) -> int:
    """Returns the batch size that `rows` rows run in: the next power of two, to compile few
    programs.

    Where `params` lie on a mesh, it is the next multiple of that over which the mesh cuts a batch.
    """
    size = 1 << max(rows - 1, 0).bit_length()
    mesh = None if params is None else mesh_of_all(params)
    shards = 1 if mesh is None else batch_shards(mesh)
    return -(-size // shards) * shards


def call_lengths() -> list[int]:
    """Returns how long calls may be, ascending: `CHUNKS`, and a longer one on a GPU."""
    return [*sorted(CHUNKS), *([_LONG] if jax.default_backend() == "gpu" else [])]


def chunk_lengths(total: int, batch_size: int, chunks: Sequence[int] | None = None) -> list[int]:
    """Returns the lengths of the calls that read `total` tokens of a batch.

    All come from `chunks` (ascending; `call_lengths` by default), so that a prompt of any length
    runs in programs compiled before. Less than half of any call is padding, less than a quarter of
    the longer one, but for calls of the shortest length. A CPU takes as long for padding as for
    tokens, so there more calls serve where they are the faster way.
    """
    chunks = call_lengths() if chunks is None else chunks
    # Calls of the longest kind read one text; padding costs most in them.
    allowed = [
        c for c in chunks if c * batch_size <= (_LONG if c == _LONG else _TOKENS_PER_CALL)
    ] or chunks[:1]
    if jax.default_backend() == "cpu":
        return _cover(total, allowed, _CALL_ON_CPU // batch_size)
    lengths = []
    while total > 0:
        fitting = [c for c in allowed if c < (4 * total / 3 if c == _LONG else 2 * total)]
        lengths.append(max(fitting, default=allowed[0]))
        total -= lengths[-1]
    return lengths


def _cover(total, allowed, call):
    """Lengths whose sum covers `total`, of least cost: tokens, and for each call `call` more."""
    *shorter, longest = allowed
    if not shorter:
        return [longest] * -(-total // longest)
    count, rest = divmod(total, longest)
    lengths = _cover(rest, shorter, call)
    if longest < 2 * rest and longest + call < sum(lengths) + call * len(lengths):
        lengths = [longest]
    return [longest] * count + lengths


def check_tokens(tokens: Sequence[int], vocab_size: int, name: str) -> None:
    """See `griffin_jax.inputs`."""
    inputs.check_tokens(tokens, vocab_size, name)


def pad(rows: Sequence[Sequence[int]], batch_size: int, begin: int, length: int):
    """Returns the tokens begin : begin + length of each row, int32[B, T], and how many those
    are, int32[B].

    Rows beyond `rows` are all padding.
    """
    tokens = np.zeros((batch_size, length), np.int32)
    lengths = np.zeros(batch_size, np.int32)
    for i, row in enumerate(rows):
        part = row[begin : begin + length]
        tokens[i, : len(part)] = part
        lengths[i] = len(part)
    return tokens, lengths


def read(model: Griffin, params: dict, state: AnyState, rows: Sequence[Sequence[int]]) -> AnyState:
    """Returns the state after each row's tokens, however many; `state` is donated.

    Args:
      model: The model.
      params: Its parameters.
      state: A state of a batch of at least len(rows).
      rows: Token ids of each row; an empty one leaves that row's state as it is.
    """
    batch_size = len(state.position)
    begin = 0
    for length in chunk_lengths(max(map(len, rows), default=0), batch_size):
        chunk = put_chunk(params, *pad(rows, batch_size, begin, length))
        state = read_chunk(model, params, state, *chunk)
        begin += length
    return state


@functools.partial(jit_on_mesh, static_argnames="model", donate_argnames="state")
def read_chunk(model, params, state, tokens, lengths):
    _, state = model.apply({"params": params}, tokens, state, lengths=lengths, method="features")
    return constrain_state(state)


@functools.partial(jit_on_mesh, static_argnames="model", donate_argnames="state")
def read_features(model, params, state, tokens, lengths):
    """Reads as `read_chunk` does, but returns what the output head reads, [B, T, D], too."""
    x, state = model.apply({"params": params}, tokens, state, lengths=lengths, method="features")
    return x, constrain_state(state)


def fresh_state(model: Griffin, params: dict, batch_size: int, tokens: int) -> AnyState:
    """Returns the state before the first token, beside the parameters.

    Args:
      model: The model.
      params: Its parameters.
      batch_size: Number of rows.
      tokens: How many tokens the state will read; it matters under an unbounded window only.
    """
    return state_with_slots(model, params, batch_size, capacity_for(model.config, tokens))


def state_with_slots(
    model: Griffin, params: dict, batch_size: int, capacity: int | None
) -> AnyState:
    """Returns what `fresh_state` does, with exactly `capacity` slots for keys; see `init_state`."""
    return _init_program(*_of_state(model, params, batch_size, capacity))()


def shape_of_state(model: Griffin, params: dict, batch_size: int, tokens: int) -> AnyState:
    """Returns the shapes of what `fresh_state` returns, and where its arrays lie."""
    capacity = capacity_for(model.config, tokens)
    build, where = _builder(*_of_state(model, params, batch_size, capacity))
    shapes = jax.eval_shape(build)
    if isinstance(where, jax.sharding.Sharding):
        where = jax.tree.map(lambda _: where, shapes)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, where
    )


def _of_state(model, params, batch_size, capacity):
    where = mesh_of_all(params) or companion_sharding(params)
    return model.config, batch_size, model.dtype, capacity, is_stacked(params), where


def select_rows(
    model: Griffin, params: dict, state: AnyState, rows: Sequence[int], tokens: int
) -> AnyState:
    """Returns a copy of some rows of `state`, with room for `tokens` tokens in all."""
    capacity = capacity_for(model.config, tokens)
    if mesh_of_all(params) is None:
        state = jax.device_put(state, companion_sharding(params))
    return take_rows(state, np.asarray(rows, np.int32), capacity)


def companion_sharding(params: dict) -> jax.sharding.Sharding:
    """Returns where the arrays belong that go with `params`: on their device, or on all of their
    mesh.

    Arrays that are committed to it from the start spare jit a second compilation.
    """
    sharding = a_leaf(params).sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding


def with_room(model: Griffin, state: AnyState, tokens: int) -> AnyState:
    """Returns the state with room for `tokens` tokens in all: itself, or a copy with more slots.

    A step under an unbounded window reads every slot there is, so texts that grow begin with few.
    """
    capacity = capacity_for(model.config, tokens)
    if capacity is None or not 0 < slots_of(state) < capacity:
        return state
    return _grow(state, capacity)


def slots_of(state: AnyState) -> int:
    """Returns how many tokens those of a state's blocks have room for that grow; 0 where none
    does.
    """
    stacked = isinstance(state, StackedState)
    blocks = (*state.groups, *state.rest) if stacked else state.blocks
    return next((n for block in blocks if (n := block.slots()) is not None), 0)


def capacity_for(config: GriffinConfig, tokens: int) -> int | None:
    """Returns the slots under an unbounded window, of a few sizes, so that few programs serve all.

    They are 256, 384, 512, 768, ... 2048, of which less than a third is unwritten (of any but the
    smallest), and then 2560, 3072, 3584, 4096, 5120, ..., of which less than a fifth is.
    """
    if config.attention_window is not None:
        return None
    power = max(batch_size_for(tokens), 256)
    if power == 256:
        return power
    step = power // (4 if power <= 2048 else 8)
    return -(-tokens // step) * step


def put(params: dict, array: np.ndarray, *names: str) -> jax.Array:
    """Returns a host array beside the parameters; on a mesh, in the layout of `names`
    (`ACTIVATIONS`).
    """
    mesh = mesh_of_all(params)
    if mesh is None:
        return jax.device_put(array, companion_sharding(params))
    sharding = jax.sharding.NamedSharding(mesh, activation_spec(mesh, array.shape, names))
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def put_whole(params: dict, tree: Any) -> Any:
    """Returns host arrays beside the parameters, whole on every device: in one call, where there is
    no mesh.
    """
    if mesh_of_all(params) is None:
        return jax.device_put(tree, companion_sharding(params))
    return jax.tree.map(lambda array: put(params, array), tree)


def put_chunk(params: dict, tokens: np.ndarray, lengths: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Puts tokens [B, T] and lengths [B] where they belong; see `put`."""
    return put(params, tokens, "batch", "time"), put(params, lengths, "batch")


@functools.lru_cache(maxsize=64)
def _init_program(*of_state):
    build, where = _builder(*of_state)
    return jax.jit(build, out_shardings=where)


def _builder(config, batch_size, dtype, capacity, stacked, where):
    """Returns a function that makes a fresh state, and where its arrays belong."""

    def build():
        state = init_state(config, batch_size, dtype, capacity)
        return stack_state(config, state) if stacked else state

    if isinstance(where, jax.sharding.Mesh):
        check_batch(batch_size, where)
        where = tree_shardings(jax.eval_shape(build), where)
    return build, where


@functools.partial(jit_on_mesh, static_argnames="capacity")
def take_rows(state: AnyState, rows: np.ndarray, capacity: int | None = None) -> AnyState:
    """Returns a copy of the rows int32[B], with at least `capacity` slots under an unbounded
    window.
    """

    def take(block, axis=0):
        block = jax.tree.map(lambda x: jnp.take(x, rows, axis=axis), block)
        return _padded(block, capacity, axis + 1)

    taken = dataclasses.replace(_each_block(state, take), position=state.position[rows])
    return constrain_state(taken)


@functools.partial(jit_on_mesh, static_argnames="capacity")
def _grow(state, capacity):
    return constrain_state(
        _each_block(state, lambda block, axis=0: _padded(block, capacity, axis + 1))
    )


def _each_block(state, change):
    """Returns the state with `change(block, axis=)` of every block; `axis` is that of rows."""
    if isinstance(state, StackedState):
        groups = tuple(change(stack, axis=1) for stack in state.groups)
        return dataclasses.replace(state, groups=groups, rest=tuple(map(change, state.rest)))
    return dataclasses.replace(state, blocks=tuple(map(change, state.blocks)))


def _padded(block, capacity, axis):
    """Returns the block with at least `capacity` slots, if it is one of attention; they are at
    `axis`.
    """
    if not isinstance(block, AttentionState) or not capacity or block.keys.shape[axis] >= capacity:
        return block
    # The ring of an unbounded window has never wrapped: position p stands in slot p.
    room = ((0, 0),) * axis + ((0, capacity - block.keys.shape[axis]), (0, 0), (0, 0))
    return jax.tree.map(lambda x: jnp.pad(x, room), block)
