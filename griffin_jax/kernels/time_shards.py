"""Sequences cut in time over the mesh axis "sequence": what a part needs of those before it.

Used inside of `per_shard`, where each device sees its own [B, T / shards, ...] of a sequence.
"""

import jax
import jax.numpy as jnp
from jax import lax

from griffin_jax.devices import SEQUENCE


def begin_of_shard(time: int) -> jax.Array:
    """Returns the place in the whole sequence of this part's first token; `time` is a part's
    length.
    """
    return lax.axis_index(SEQUENCE) * time


def shard_lengths(lengths: jax.Array, time: int) -> jax.Array:
    """Returns how many of this part's tokens are real, int32[B], of how many of the whole are."""
    return jnp.clip(lengths - begin_of_shard(time), 0, time)


def preceding(x: jax.Array, before: jax.Array) -> jax.Array:
    """Returns a halo: the last L items before this part, [B, L, ...], oldest first.

    Args:
      x: [B, T, ...], this part's items.
      before: [B, L, ...], the items before the whole sequence, oldest first.
    """
    shards, index = lax.axis_size(SEQUENCE), lax.axis_index(SEQUENCE)
    time, length = x.shape[1], before.shape[1]
    parts, missing = [], length
    for distance in range(1, shards):
        size = min(time, missing)
        if not size:
            break
        passed_on = [(i, i + distance) for i in range(shards - distance)]
        parts.insert(0, lax.ppermute(x[:, time - size :], SEQUENCE, passed_on))
        missing -= size
    if not parts:
        return before
    pad = ((0, 0), (missing, 0)) + ((0, 0),) * (x.ndim - 2)
    received = jnp.pad(jnp.concatenate(parts, axis=1), pad)
    # In the first parts, some of it lies before the sequence.
    place = index * time + jnp.arange(length)
    older = jnp.take(before, jnp.minimum(place, length - 1), axis=1)
    inside = (place >= length).reshape(1, length, *[1] * (x.ndim - 2))
    return jnp.where(inside, received, older.astype(x.dtype))


def newest(padded: jax.Array, lengths: jax.Array, count: int, cut: bool) -> jax.Array:
    """Returns the last `count` real items of each row of the whole sequence, [B, count, ...].

    Args:
      padded: [B, count + T, ...], this part's items behind the `count` before them.
      lengths: int32[B], how many items of the whole sequence are real.
      count: How many to keep.
      cut: The sequence is cut into parts; without, this is all of it.
    """
    time = padded.shape[1] - count
    local = shard_lengths(lengths, time) if cut else lengths
    index = local[:, None] + jnp.arange(count)[None]
    kept = jnp.take_along_axis(padded, index[..., None], axis=1)
    if not cut:
        return kept
    begin = begin_of_shard(time)
    # The part that the last real item is in has them all; the first part has those of empty rows.
    ends_here = (lengths > begin) & (lengths <= begin + time)
    ends_here |= (lengths == 0) & (begin == 0)
    return lax.psum(jnp.where(ends_here[:, None, None], kept, 0), SEQUENCE)


def entering_state(
    decay: jax.Array, gained: jax.Array, initial: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Runs the linear recurrence over parts: a part makes decay * h + gained of a state h.

    Args:
      decay: float32[B, R], the product of this part's decays.
      gained: float32[B, R], the state that this part makes of zero.
      initial: float32[B, R], the state before the whole sequence.

    Returns:
      The state before this part, and the one after the whole sequence.
    """

    def step(h, part):
        decay, gained = part
        return decay * h + gained, h

    parts = lax.all_gather((decay, gained), SEQUENCE)
    last, before = lax.scan(step, initial, parts)
    return lax.dynamic_index_in_dim(before, lax.axis_index(SEQUENCE), keepdims=False), last
