"""Local multi-query attention over a ring of cached keys and the keys of this call."""

import jax
import jax.numpy as jnp

_MASKED = -2.3819763e38  # what the published model writes into masked scores


def local_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cached_k: jax.Array,
    cached_v: jax.Array,
    start: jax.Array,
    positions: jax.Array,
    *,
    reach: int | None,
) -> jax.Array:
    """Attends from every token to itself and to what its document wrote shortly before.

    A key `d` tokens before a query is seen when d <= min(reach, position of the query). The second
    bound is the document's beginning, so packed documents need no mask of their own.

    Args:
      q: [B, T, N, H], rotated and not yet scaled.
      k: [B, T, K, H], rotated; N is a multiple of K.
      v: [B, T, K, H].
      cached_k: [B, S, K, H], a ring: slot s holds the newest position p < start with p % S == s.
      cached_v: [B, S, K, H].
      start: int32[B], the position that follows the newest cached one; 0 for an empty ring.
      positions: int32[B, T], each token's position in its document.
      reach: How many tokens back a query sees; None for all. With T > S > 0, at most S.

    Returns:
      [B, T, N, H] in the dtype of `q`; scores and softmax are float32. The cost is that of T * S
      pairs, not of T * T, when `reach` bounds it.
    """
    batch, time, heads, size = q.shape
    slots, kv_heads = cached_k.shape[1:3]
    q = (q * size**-0.5).reshape(batch, time, kv_heads, heads // kv_heads, size)
    limit = positions if reach is None else jnp.minimum(positions, reach)
    # A slot's distance from the first token of this call: 1 for the newest one.
    age = 1 + (start[:, None] - 1 - jnp.arange(slots)) % max(slots, 1)
    age = jnp.where(age <= start[:, None], age, jnp.iinfo(jnp.int32).max // 2)

    if reach is None or slots == 0 or time <= slots:
        t = jnp.arange(time)
        out = _attend(
            q,
            (cached_k, cached_v, t[:, None] + age[:, None, :]),
            (k, v, (t[:, None] - t)[None]),
            limit,
        )
        return out.reshape(batch, time, heads, size)

    # Blocks as long as the ring: a query reaches into its own block and the one before, which for
    # the first block is the ring.
    padding = -time % slots
    blocks = (time + padding) // slots

    def split(x):
        pad = ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2)
        return jnp.pad(x, pad).reshape(batch, blocks, slots, *x.shape[2:])

    q, k, v, limit = split(q), split(k), split(v), split(limit)
    before_k = jnp.concatenate([cached_k[:, None], k[:, :-1]], axis=1)
    before_v = jnp.concatenate([cached_v[:, None], v[:, :-1]], axis=1)
    t = jnp.arange(slots)
    ages = jnp.concatenate(
        [age[:, None], jnp.broadcast_to(slots - t, (batch, blocks - 1, slots))], axis=1
    )
    out = jax.vmap(_attend, in_axes=((1), (1, 1, 1), (1, 1, None), 1), out_axes=1)(
        q,
        (before_k, before_v, t[:, None] + ages[:, :, None, :]),
        (k, v, (t[:, None] - t)[None]),
        limit,
    )
    return out.reshape(batch, time + padding, heads, size)[:, :time]


def _attend(q, before, now, limit):
    """Softmax attention over two groups of keys, which are never copied into one.

    q [B, T, K, G, H]; each group: keys and values [B, S, K, H], distances [B or 1, T, S];
    limit [B, T].
    """
    groups = [group for group in (before, now) if group[0].shape[1]]

    def scores(keys, distance):
        raw = jnp.einsum("btkgh,bskh->bkgts", q, keys, preferred_element_type=jnp.float32)
        seen = (distance >= 0) & (distance <= limit[:, :, None])
        return jnp.where(seen[:, None, None], raw, _MASKED)

    joined = jnp.concatenate([scores(keys, distance) for keys, _, distance in groups], axis=-1)
    weights = jax.nn.softmax(joined, axis=-1).astype(q.dtype)
    out, taken = 0, 0
    for keys, values, _ in groups:
        share = weights[..., taken : taken + keys.shape[1]]
        out += jnp.einsum("bkgts,bskh->btkgh", share, values)
        taken += keys.shape[1]
    return out


def local_attention_reference(q, k, v, cached_k, cached_v, start, positions, *, reach):
    """The definition over all pairs; see `local_attention`."""
    time, heads, size = q.shape[1:]
    slots, kv_heads = cached_k.shape[1:3]
    slot_position = start[:, None] - 1 - (start[:, None] - 1 - jnp.arange(slots)) % max(slots, 1)
    # Places on one time line: this call's tokens at start, start + 1, ...
    place = start[:, None] + jnp.arange(time)
    k_place = jnp.concatenate([slot_position, place], axis=1)
    distance = place[:, :, None] - k_place[:, None, :]
    limit = positions if reach is None else jnp.minimum(positions, reach)
    seen = (distance >= 0) & (distance <= limit[:, :, None]) & (k_place >= 0)[:, None, :]
    keys = jnp.repeat(jnp.concatenate([cached_k, k], axis=1), heads // kv_heads, axis=2)
    values = jnp.repeat(jnp.concatenate([cached_v, v], axis=1), heads // kv_heads, axis=2)
    scores = jnp.einsum("btnh,bsnh->bnts", q, keys).astype(jnp.float32) * size**-0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, _MASKED), axis=-1).astype(q.dtype)
    return jnp.einsum("bnts,bsnh->btnh", weights, values)
