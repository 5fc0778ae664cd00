"""States of single texts: a state of one row is a value, which nothing overwrites.

A text is read in a state of its own, so that texts at any place can be read in one call, a state
can be kept for other texts to go on from, and none but the reader needs to know of batches.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.devices import replicate
from griffin_jax.inference import prefill
from griffin_jax.models import Griffin
from griffin_jax.models.stack import AnyState, StackedState
from griffin_jax.sharding import jit_on_mesh, mesh_of_all
from griffin_jax.sharding.layouts import constrain_state


def per_row(function: Callable[..., jax.Array], *states: Any) -> AnyState:
    """Returns `function(axis, *leaves)` of the leaves of states of one structure; rows lie along
    `axis`.
    """

    def along(axis):
        return functools.partial(jax.tree.map, functools.partial(function, axis))

    first = states[0]
    if not isinstance(first, StackedState):
        return along(0)(*states)
    return dataclasses.replace(
        first,
        position=along(0)(*(state.position for state in states)),
        groups=along(1)(*(state.groups for state in states)),
        rest=along(0)(*(state.rest for state in states)),
    )


def with_row(states: AnyState, slot: jax.Array, state: AnyState) -> AnyState:
    """Returns the states of some rows with that of `slot`, int32, replaced by a state of one row;
    traced.
    """
    return per_row(
        lambda axis, all, one: jax.lax.dynamic_update_slice_in_dim(
            all, one.astype(all.dtype), slot, axis
        ),
        states,
        state,
    )


def fresh_row(model: Griffin, params: dict, tokens: int) -> AnyState:
    """Returns the state of one row before the first token; arguments as for `prefill.fresh_state`."""
    rows = prefill.batch_size_for(1, params)
    state = prefill.fresh_state(model, params, rows, tokens)
    return state if rows == 1 else _first(state)


@jit_on_mesh
def _first(state):
    return constrain_state(per_row(lambda axis, x: jax.lax.slice_in_dim(x, 0, 1, axis=axis), state))


def put_row(params: dict, state: AnyState) -> AnyState:
    """Returns a state of one row whose arrays are on the host, beside the parameters."""
    mesh = mesh_of_all(params)
    if mesh is None:
        return jax.device_put(state, prefill.companion_sharding(params))
    return _placed.on(mesh, state)


@jit_on_mesh
def _placed(state):
    return constrain_state(state)


def read_rows(
    model: Griffin,
    params: dict,
    states: Sequence[AnyState],
    chunks: Sequence[Sequence[int]],
    length: int,
) -> tuple[list[AnyState], jax.Array]:
    """Reads some tokens of each of a few texts, in one call.

    Args:
      model: The model.
      params: Its parameters.
      states: States of one row each, with equal numbers of slots.
      chunks: The tokens of each, `length` at most.
      length: The length of the call, of which there are few, as each is compiled.

    Returns:
      The states after, and a number that is there once they are.
    """
    count = rows_of_a_call(len(states), params)
    tokens, lengths = prefill.pad(chunks, count, 0, length)
    joined = (*states, *[states[0]] * (count - len(states)))
    chunk = prefill.put_chunk(params, tokens, lengths)
    after, done = _read.on(mesh_of_all(params), model, params, joined, *chunk)
    return list(after[: len(states)]), done


def read_text(
    model: Griffin, params: dict, state: AnyState, tokens: Sequence[int], read: int
) -> AnyState:
    """Returns the state of one row after a text, of which it has read the first `read` tokens."""
    for length in prefill.chunk_lengths(len(tokens) - read, 1):
        state = prefill.with_room(model, state, read + length + 1)
        part = tokens[read : read + length]
        (state,), _ = read_rows(model, params, [state], [part], length)
        read += len(part)
    return state


def lower_read(
    model: Griffin, params: dict, state: AnyState, texts: int, length: int
) -> jax.stages.Lowered:
    """Lowers the program of `read_rows` for so many texts, whose states have the shapes of `state`."""
    count = rows_of_a_call(texts, params)
    tokens, lengths = np.zeros((count, length), np.int32), np.zeros(count, np.int32)
    chunk = prefill.put_chunk(params, tokens, lengths)
    return _read.lower(model, params, (state,) * count, *chunk)


def rows_of_a_call(texts: int, params: dict) -> int:
    """Returns the batch size in which so many texts are read: one of few, a power of four."""
    power = 4 ** -(-max(texts - 1, 0).bit_length() // 2)
    return prefill.batch_size_for(power, params)


@functools.partial(jit_on_mesh, static_argnames="model")
def _read(model, params, states, tokens, lengths):
    """Returns the states, of one row each, after tokens int32[B, T], `lengths` int32[B] of them
    real.
    """
    state = per_row(lambda axis, *parts: jnp.concatenate(parts, axis=axis), *states)
    _, state = model.apply({"params": params}, tokens, state, lengths=lengths, method="features")
    state = constrain_state(state)
    after = tuple(
        constrain_state(
            per_row(lambda axis, x, i=i: jax.lax.slice_in_dim(x, i, i + 1, axis=axis), state)
        )
        for i in range(len(states))
    )
    return after, replicate(jnp.sum(lengths))


def nbytes(state: AnyState) -> int:
    """Returns the bytes of all arrays of a state."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
