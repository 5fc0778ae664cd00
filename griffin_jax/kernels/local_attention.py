"""Local multi-query attention over a ring of cached keys and the keys of this call."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from griffin_jax.devices import model_shards, per_shard, platform, time_shards
from griffin_jax.kernels import local_attention_mosaic_gpu as mosaic
from griffin_jax.kernels.choice import choose
from griffin_jax.kernels.query_tiles import attend_in_tiles, tile_size
from griffin_jax.kernels.time_shards import preceding
from griffin_jax.kernels.whole_rows import attend_whole_rows

_MASKED = -2.3819763e38  # what the published model writes into masked scores
_NEVER = 2**30  # a distance beyond every limit
_FEWEST_SLOTS = 256  # of a ring whose unwritten part is worth leaving out


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
      kernel: "cudnn_rows_gpu", "band_gpu", "cudnn_gpu", "tiles_tpu", "written_cpu" or "reference"; by
        default the fastest that serves platform and shape.

    Returns:
      [B, T, N, H] in the dtype of `q`; scores and softmax are float32. The cost is that of T * S
      pairs, not of T * T, when `reach` bounds it. Under a mesh each device has its rows, its heads
      and its part of time, with as many keys from the parts before as a query reaches.

    Raises:
      ValueError: the kernel that was asked for does not serve this platform or shape.
    """
    run = functools.partial(_on_one_device, reach=reach, fresh=fresh, kernel=kernel)
    shards = time_shards(q.shape[1])
    if shards > 1:  # of which the first alone can be fresh
        run = functools.partial(_on_one_device, reach=reach, fresh=False, kernel=kernel)
        run = functools.partial(_in_time_shards, run, reach, shards)
    heads, kv_heads = "heads", None
    if k.shape[2] > 1:  # query heads go with their own head of keys
        heads = kv_heads = None if k.shape[2] % model_shards() else "heads"
    query, key = ("batch", "time", heads, None), ("batch", "time", kv_heads, None)
    cached = ("batch", None, kv_heads, None)
    return per_shard(
        run,
        (q, k, v, cached_k, cached_v, start, positions),
        (query, key, key, cached, cached, ("batch",), ("batch", "time")),
        ((q.shape, query),),
    )


def _in_time_shards(run, reach, shards, q, k, v, cached_k, cached_v, start, positions):
    """Computes the attention of one part, whose ring holds what stands before the part, oldest first.

    What is older than a query's document is out of reach already by the query's position.
    """
    slots = cached_k.shape[1]
    order = (start[:, None] + jnp.arange(slots)[None]) % max(slots, 1)
    # All that came before where nothing bounds the reach.
    more = (shards - 1) * k.shape[1] if reach is None else 0

    def before(ring, x):
        ring = jnp.take_along_axis(ring, order[..., None, None], axis=1)
        return preceding(x, jnp.pad(ring, ((0, 0), (more, 0), (0, 0), (0, 0))))

    start = jnp.full_like(start, slots + more)
    return run(q, k, v, before(cached_k, k), before(cached_v, v), start, positions)


def _on_one_device(q, k, v, cached_k, cached_v, start, positions, *, reach, fresh, kernel):
    cudnn = _cudnn_unsupported(q)
    rows = cudnn if fresh else "it takes calls that begin every row anew"
    reasons = {
        "cudnn_rows_gpu": rows,
        "band_gpu": mosaic.unsupported_reason(q, cached_k),
        "cudnn_gpu": cudnn,
        "tiles_tpu": _tiles_unsupported(q, reach),
        "written_cpu": _written_unsupported(q, cached_k, fresh),
        "reference": None,
    }
    kernel = choose("local_attention", reasons, kernel)
    if kernel == "cudnn_rows_gpu":
        ring = cached_k.shape[1:]

        def attend(q, k, v, positions):
            rows = len(q)
            empty = jnp.zeros((rows, *ring), k.dtype)
            begin = jnp.zeros(rows, jnp.int32)
            return _on_one_device(
                q, k, v, empty, empty, begin, positions, reach=reach, fresh=True, kernel="cudnn_gpu"
            )

        return attend_whole_rows(q, k, v, positions, reach=reach, attend=attend)

    if fresh and q.shape[1] <= cached_k.shape[1]:
        cached_k, cached_v = cached_k[:, :0], cached_v[:, :0]
    limit = positions if reach is None else jnp.minimum(positions, reach)
    if kernel == "band_gpu":
        plain = functools.partial(
            _blockwise, kernel="reference" if cudnn else "cudnn_gpu", reach=reach
        )
        return mosaic.attend_to_band(plain, q, k, v, cached_k, cached_v, start, limit)
    if kernel == "tiles_tpu":
        return _in_tiles(q, k, v, cached_k, cached_v, start, limit, reach)
    if kernel == "written_cpu":
        return _over_written_slots(q, k, v, cached_k, cached_v, start, limit)
    return _blockwise(q, k, v, cached_k, cached_v, start, limit, reach=reach, kernel=kernel)


def _blockwise(q, k, v, cached_k, cached_v, start, limit, *, reach, kernel):
    """Computes the attention of few pairs beside those that are seen, by a kernel of any masks."""
    batch, time, heads, size = q.shape
    slots = cached_k.shape[1]
    if reach is None or slots == 0 or time <= slots:
        return _over_all_pairs(q, k, v, cached_k, cached_v, start, limit, kernel)

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
    age = _ages(start, slots)
    t = jnp.arange(slots)[None, :, None]
    ages = jnp.broadcast_to(slots - t.swapaxes(1, 2), (batch, blocks - 1, slots))
    ages = jnp.concatenate([age[:, None], ages], axis=1).reshape(-1, slots)
    seen = (t + ages[:, None, :], t - t.swapaxes(1, 2))
    keys, values = (before(cached_k, k), k), (before(cached_v, v), v)
    out = _attend(q, keys, values, _masks(seen, limit), kernel)
    return out.reshape(batch, -1, heads, size)[:, :time]


def _cudnn_unsupported(q):
    time, _, size = q.shape[1:]
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16 or float16, not {q.dtype}"
    if time < 64 or time % 2 or size % 8 or size > 256:
        return f"{time} tokens of head size {size} (needs an even 64 or more, and at most 256)"
    return None


def _tiles_unsupported(q, reach):
    batch, time = q.shape[:2]
    if reach is None:
        return "it takes a bounded reach"
    if time <= tile_size(batch):
        return f"{time} tokens are no more than a tile of {tile_size(batch)}"
    return None


def _in_tiles(q, k, v, cached_k, cached_v, start, limit, reach):
    def attend(q, key, value, mask):
        return _attend(q, (key,), (value,), (mask,), "reference")

    return attend_in_tiles(q, k, v, cached_k, cached_v, start, limit, reach=reach, attend=attend)


def _written_unsupported(q, cached_k, fresh):
    time, slots = q.shape[1], cached_k.shape[1]
    if fresh:
        return "nothing is in the ring"
    if time == 1 or time > slots or slots < _FEWEST_SLOTS:
        return f"{time} tokens, {slots} slots (needs 2 tokens, as many slots, and {_FEWEST_SLOTS})"
    return None


def _over_written_slots(q, k, v, cached_k, cached_v, start, limit):
    """Computes `_over_all_pairs` without the slots that no row of the batch has written yet.

    Until the end of a ring is reached, a position stands in the slot of its number, so the first
    slots are a ring, too. How many of them are looked at, the device decides: none, a quarter, all.
    """
    slots = cached_k.shape[1]
    sizes = (0, slots // 4, slots)

    def over(size, q, k, v, cached_k, cached_v):
        ring = cached_k[:, :size], cached_v[:, :size]
        return _over_all_pairs(q, k, v, *ring, start, limit, "reference")

    size = jnp.searchsorted(jnp.asarray(sizes[:-1]), jnp.max(start))
    branches = [functools.partial(over, size) for size in sizes]
    return jax.lax.switch(size, branches, q, k, v, cached_k, cached_v)


def _over_all_pairs(q, k, v, cached_k, cached_v, start, limit, kernel):
    t = jnp.arange(q.shape[1])[None, :, None]
    age = _ages(start, cached_k.shape[1])
    seen = (t + age[:, None, :], t - t.swapaxes(1, 2))
    return _attend(q, (cached_k, k), (cached_v, v), _masks(seen, limit), kernel)


def _ages(start, slots):
    """Returns the distance of each slot [B, S] from the first token of this call: 1 for the newest
    one.
    """
    age = 1 + (start[:, None] - 1 - jnp.arange(slots)[None]) % max(slots, 1)
    return jnp.where(age <= start[:, None], age, _NEVER)


def _masks(distances, limit):
    """Returns which keys [B or 1, T, S] at these distances are seen under limit [B, T]."""
    return [(distance >= 0) & (distance <= limit[:, :, None]) for distance in distances]


def _attend(q, keys, values, masks, kernel):
    """Computes softmax attention of q [B, T, N, H] over two groups of keys and values [B, S, K,
    H].
    """
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
            mask[:, None, :, None],
            _scores(q, key),
            _MASKED,
        )
        for key, _, mask in groups
    ]
    largest = functools.reduce(jnp.maximum, (s.max(axis=-1, keepdims=True) for s in scores))
    shares = [jnp.exp(s - jax.lax.stop_gradient(largest)) for s in scores]
    total: Any = sum(share.sum(axis=-1) for share in shares)
    out = sum(
        _mixed(share.astype(q.dtype), value)
        for share, (_, value, _) in zip(shares, groups, strict=True)
    )
    out = jnp.swapaxes(out / total[..., None], 1, 2)
    return out.astype(q.dtype).reshape(batch, time, heads, size)


def _one_query_of_many_heads(time, key):
    """Returns whether to read keys or values [B, S, K, H] where they lie, for a decoding step.

    A batched matrix product wants one matrix per head, and XLA would keep the cache twice for it:
    the other way around in memory inside of a loop over steps.
    """
    return time == 1 and key.shape[2] > 1


def _scores(q, key):
    """Returns float32[B, K, T, G, S] of q [B, T, K, G, H] and key [B, S, K, H].

    Queries and the heads of a group lie as in q, so that neither the scores nor what is mixed by
    them is put into another order.
    """
    if q.shape[1] == key.shape[2] == 1 and platform() == "cpu":
        # Keys first: XLA's CPU compiler would put the whole ring into another order.
        scores = jnp.einsum(
            "bsh,bgh->bsg", key[:, :, 0], q[:, 0, 0], preferred_element_type=jnp.float32
        )
        return jnp.swapaxes(scores, 1, 2)[:, None, None]
    if not _one_query_of_many_heads(q.shape[1], key):
        return jnp.einsum("btkgh,bskh->bktgs", q, key, preferred_element_type=jnp.float32)
    q, key = (x.astype(jnp.float32) for x in (q, key[:, :, :, None]))
    return jnp.transpose((q * key).sum(axis=-1), (0, 2, 3, 1))[:, :, None]


def _mixed(shares, value):
    """Returns float32[B, K, T, G, H] of shares [B, K, T, G, S] and value [B, S, K, H]."""
    if not _one_query_of_many_heads(shares.shape[2], value):
        return jnp.einsum("bktgs,bskh->bktgh", shares, value, preferred_element_type=jnp.float32)
    shares = jnp.transpose(shares[:, :, 0], (0, 3, 1, 2))[..., None]
    shares, value = (x.astype(jnp.float32) for x in (shares, value[:, :, :, None]))
    return (shares * value).sum(axis=1)[:, :, None]


def attention_scores(
    q: jax.Array,
    k: jax.Array,
    cached_k: jax.Array,
    start: jax.Array,
    positions: jax.Array,
    *,
    reach: int | None,
) -> jax.Array:
    """Returns what the softmax is taken of, by the definition over all pairs; arguments as
    `local_attention`.

    Returns:
      float32[B, N, T, S + T]. The first S keys are those of the ring, oldest first, and then come
      those of this call. A key that is not seen has the lowest number there is for it.
    """
    (time, heads, size), slots = q.shape[1:], cached_k.shape[1]
    # Places on one time line: this call's tokens at start, start + 1, ...
    place = start[:, None] + jnp.arange(time)[None]
    k_place = start[:, None] + jnp.arange(-slots, time)[None]
    distance = place[:, :, None] - k_place[:, None, :]
    limit = positions if reach is None else jnp.minimum(positions, reach)
    seen = (distance >= 0) & (distance <= limit[:, :, None]) & (k_place >= 0)[:, None, :]
    keys = jnp.repeat(_on_a_line(cached_k, k, start), heads // k.shape[2], axis=2)
    scores = jnp.einsum("btnh,bsnh->bnts", q, keys).astype(jnp.float32) * size**-0.5
    return jnp.where(seen[:, None], scores, _MASKED)


def attended(weights: jax.Array, v: jax.Array, cached_v: jax.Array, start: jax.Array) -> jax.Array:
    """Returns the values [B, T, N, H] that weights [B, N, T, S + T] mix, whose keys are in the
    order above.
    """
    values = _on_a_line(cached_v, v, start)
    values = jnp.repeat(values, weights.shape[1] // v.shape[2], axis=2)
    return jnp.einsum("bnts,bsnh->btnh", weights.astype(v.dtype), values)


def _on_a_line(ring, x, start):
    """Returns what is in a ring [B, S, K, H], oldest first, and behind it x [B, T, K, H]."""
    slots = ring.shape[1]
    order = (start[:, None] + jnp.arange(slots)[None]) % max(slots, 1)
    return jnp.concatenate([jnp.take_along_axis(ring, order[..., None, None], axis=1), x], axis=1)


def local_attention_reference(q, k, v, cached_k, cached_v, start, positions, *, reach):
    """Computes the definition over all pairs; see `local_attention`."""
    scores = attention_scores(q, k, cached_k, start, positions, reach=reach)
    return attended(jax.nn.softmax(scores, axis=-1), v, cached_v, start)
