"""Attention over a short way back, some queries at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Attend = Callable[..., jax.Array]

_TILE = 256  # queries of a row at a time, at most
_QUERIES = 512  # of all rows together, but for tiles of 16


def tile_size(batch: int) -> int:
    """Returns the number of queries of each row in a tile, for a batch of so many rows."""
    return max(16, min(_TILE, _QUERIES // batch))


def attend_in_tiles(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cached_k: jax.Array,
    cached_v: jax.Array,
    start: jax.Array,
    limit: jax.Array,
    *,
    reach: int,
    attend: Attend,
) -> jax.Array:
    """Computes local attention whose scores of one tile are all that exist of them at a time.

    A tile of Q queries reads the reach + Q keys that end with its last one. The backward pass
    computes its scores again.

    Args:
      q: [B, T, N, H], rotated and not yet scaled.
      k: [B, T, K, H], rotated.
      v: [B, T, K, H].
      cached_k: [B, S, K, H], a ring, as for `local_attention`. S may be 0, where `limit` lets no
        query see what stood before.
      cached_v: [B, S, K, H].
      start: int32[B], the position that follows the newest cached one.
      limit: int32[B, T], how many tokens back each query sees, at most `reach`.
      reach: At most S, but where S is 0.
      attend: A function of (q, k, v, mask bool[B, Q, keys]).

    Returns:
      [B, T, N, H].
    """
    batch, time, _, size = q.shape
    slots = cached_k.shape[1]
    tile = tile_size(batch)
    padding = -time % tile

    def pad(x, before=0):
        return jnp.pad(x, ((0, 0), (before, padding)) + ((0, 0),) * (x.ndim - 2))

    def line(ring, x):
        """Returns the `reach` newest of the ring, oldest first, and this call's."""
        if not slots:
            return pad(x, reach)
        order = (start[:, None] + jnp.arange(slots - reach, slots)[None]) % slots
        ring = jnp.take_along_axis(ring, order[..., None, None], axis=1)
        return pad(jnp.concatenate([ring, x], axis=1))

    keys, values = line(cached_k, k), line(cached_v, v)
    distance = reach + jnp.arange(tile)[:, None] - jnp.arange(reach + tile)[None]

    @jax.checkpoint
    def one(inputs):
        index, q, limit = inputs
        begin = index * tile
        key, value = (
            lax.dynamic_slice_in_dim(x, begin, reach + tile, axis=1) for x in (keys, values)
        )
        mask = (distance >= 0)[None] & (distance[None] <= limit[..., None])
        return attend(q, key, value, mask)

    def split(x):
        return pad(x).reshape(batch, -1, tile, *x.shape[2:]).swapaxes(0, 1)

    queries = split(q)
    out = lax.map(one, (jnp.arange(len(queries)), queries, split(limit)))
    return out.swapaxes(0, 1).reshape(batch, -1, *q.shape[2:3], size)[:, :time]
