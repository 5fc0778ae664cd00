"""Local multi-query attention over a ring of cached keys and the keys of this call."""

import functools

import jax
import jax.numpy as jnp

from griffin_jax.kernels.choice import choose
from griffin_jax.kernels.whole_rows import attend_whole_rows

_MASKED = -2.3819763e38  # what the published model writes into masked scores
_NEVER = 2**30  # a distance beyond every limit


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
    fresh: bool = False,
    kernel: str | None = None,
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
      fresh: Nothing was read before: `start` is 0, and the ring is not looked at.
      kernel: "cudnn_rows_gpu", "cudnn_gpu" or "blocks"; by default the fastest that serves platform
        and shape.

    Returns:
      [B, T, N, H] in the dtype of `q`; scores and softmax are float32. The cost is that of T * S
      pairs, not of T * T, when `reach` bounds it.

    Raises:
      ValueError: the kernel that was asked for does not serve this platform or shape.
    """
    cudnn = _cudnn_serves(q)
    rows = cudnn if fresh else "it takes calls that begin every row anew"
    serves = {"cudnn_rows_gpu": rows, "cudnn_gpu": cudnn, "blocks": None}
    kernel = choose("local_attention", serves, kernel)
    if kernel == "cudnn_rows_gpu":
        ring = cached_k.shape[1:]

        def attend(q, k, v, positions):
            rows = len(q)
            empty = jnp.zeros((rows, *ring), k.dtype)
            begin = jnp.zeros(rows, jnp.int32)
            return local_attention(
                q, k, v, empty, empty, begin, positions, reach=reach, fresh=True, kernel="cudnn_gpu"
            )

        return attend_whole_rows(q, k, v, positions, reach=reach, attend=attend)

    batch, time, heads, size = q.shape
    if fresh and time <= cached_k.shape[1]:
        cached_k, cached_v = cached_k[:, :0], cached_v[:, :0]
    slots = cached_k.shape[1]
    limit = positions if reach is None else jnp.minimum(positions, reach)
    # A slot's distance from the first token of this call: 1 for the newest one.
    age = 1 + (start[:, None] - 1 - jnp.arange(slots)[None]) % max(slots, 1)
    age = jnp.where(age <= start[:, None], age, _NEVER)

    if reach is None or slots == 0 or time <= slots:
        t = jnp.arange(time)[None, :, None]
        seen = (t + age[:, None, :], t - t.swapaxes(1, 2))
        return _attend(q, (cached_k, k), (cached_v, v), _masks(seen, limit), kernel)

    # Blocks as long as the ring: a query reaches into its own block and the one before, which for
    # the first block is the ring. Blocks stand in the batch.
    padding = -time % slots
    blocks = (time + padding) // slots

    def split(x):
        pad = ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2)
        return jnp.pad(x, pad).reshape(batch * blocks, slots, *x.shape[2:])

    def before(ring, x):
        x = x.reshape(batch, blocks, *ring.shape[1:])
        return jnp.concatenate([ring[:, None], x[:, :-1]], axis=1).reshape(-1, *ring.shape[1:])

    q, k, v, limit = split(q), split(k), split(v), split(limit)
    t = jnp.arange(slots)[None, :, None]
    ages = jnp.broadcast_to(slots - t.swapaxes(1, 2), (batch, blocks - 1, slots))
    ages = jnp.concatenate([age[:, None], ages], axis=1).reshape(-1, slots)
    seen = (t + ages[:, None, :], t - t.swapaxes(1, 2))
    keys, values = (before(cached_k, k), k), (before(cached_v, v), v)
    out = _attend(q, keys, values, _masks(seen, limit), kernel)
    return out.reshape(batch, -1, heads, size)[:, :time]


def _cudnn_serves(q):
    time, _, size = q.shape[1:]
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16 or float16, not {q.dtype}"
    if time < 64 or time % 2 or size % 8 or size > 256:
        return f"{time} tokens of head size {size} (needs an even 64 or more, and at most 256)"
    return None


def _masks(distances, limit):
    """Which keys [B or 1, T, S] at these distances are seen under limit [B, T]."""
    return [(distance >= 0) & (distance <= limit[:, :, None]) for distance in distances]


def _attend(q, keys, values, masks, kernel):
    """Softmax attention of q [B, T, N, H] over two groups of keys and values [B, S, K, H]."""
    if kernel == "cudnn_gpu":
        return jax.nn.dot_product_attention(
            q,
            jnp.concatenate(keys, axis=1),
            jnp.concatenate(values, axis=1),
            mask=jnp.concatenate(masks, axis=-1)[:, None],
            implementation="cudnn",
        )
    batch, time, heads, size = q.shape
    kv_heads = keys[0].shape[2]
    q = (q * size**-0.5).reshape(batch, time, kv_heads, heads // kv_heads, size)
    # One softmax over both groups, which nothing joins: joined keys would copy the whole ring in a
    # decoding step, and joined scores make XLA work out a new key's score in one GPU thread.
    groups = [group for group in zip(keys, values, masks, strict=True) if group[0].shape[1]]
    scores = [
        jnp.where(
            mask[:, None, None],
            jnp.einsum("btkgh,bskh->bkgts", q, key, preferred_element_type=jnp.float32),
            _MASKED,
        )
        for key, _, mask in groups
    ]
    largest = functools.reduce(jnp.maximum, (s.max(axis=-1, keepdims=True) for s in scores))
    shares = [jnp.exp(s - jax.lax.stop_gradient(largest)) for s in scores]
    total = sum(share.sum(axis=-1) for share in shares)
    out = sum(
        jnp.einsum(
            "bkgts,bskh->btkgh",
            share.astype(q.dtype),
            value,
            preferred_element_type=jnp.float32,
        )
        for share, (_, value, _) in zip(shares, groups, strict=True)
    )
    out = out / jnp.transpose(total, (0, 3, 1, 2))[..., None]
    return out.astype(q.dtype).reshape(batch, time, heads, size)


def local_attention_reference(q, k, v, cached_k, cached_v, start, positions, *, reach):
    """The definition over all pairs; see `local_attention`."""
    time, heads, size = q.shape[1:]
    slots, kv_heads = cached_k.shape[1:3]
    newest = start[:, None] - 1
    slot_position = newest - (newest - jnp.arange(slots)[None]) % max(slots, 1)
    # Places on one time line: this call's tokens at start, start + 1, ...
    place = start[:, None] + jnp.arange(time)[None]
    k_place = jnp.concatenate([slot_position, place], axis=1)
    distance = place[:, :, None] - k_place[:, None, :]
    limit = positions if reach is None else jnp.minimum(positions, reach)
    seen = (distance >= 0) & (distance <= limit[:, :, None]) & (k_place >= 0)[:, None, :]
    keys = jnp.repeat(jnp.concatenate([cached_k, k], axis=1), heads // kv_heads, axis=2)
    values = jnp.repeat(jnp.concatenate([cached_v, v], axis=1), heads // kv_heads, axis=2)
    scores = jnp.einsum("btnh,bsnh->bnts", q, keys).astype(jnp.float32) * size**-0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, _MASKED), axis=-1).astype(q.dtype)
    return jnp.einsum("bnts,bsnh->btnh", weights, values)
