"""Local attention of calls that read many tokens, on Hopper GPUs, through Pallas' Mosaic backend.

No score is worked out of a key that stands before or behind all that some queries side by side see,
and there is no mask in memory: where a row's keys begin, one number says.
"""

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from griffin_jax.kernels.mosaic_gpu import backend

_FEWEST_TOKENS = 64
_SIZES = (64, 128, 256)
_PIECE = 64  # keys, and rows of queries of a warpgroup


def unsupported_reason(q: jax.Array, cached_k: jax.Array) -> str | None:
    """Returns None, or why the kernel does not serve q [B, T, N, H] and a ring [B, S, K, H]."""
    if reason := backend.missing():
        return reason
    (time, _, size), (slots, kv_heads) = q.shape[1:], cached_k.shape[1:3]
    if q.dtype not in (jnp.bfloat16, jnp.float16) or cached_k.dtype != q.dtype:
        return f"it takes bfloat16 or float16, not {q.dtype} and a ring in {cached_k.dtype}"
    if time < _FEWEST_TOKENS or size not in _SIZES:
        return f"{time} tokens of head size {size} (needs {_FEWEST_TOKENS}; 64, 128 or 256)"
    if kv_heads != 1 or slots % _PIECE:
        return (
            f"a ring of {slots} slots, {kv_heads} heads of keys (needs a multiple of {_PIECE}; 1)"
        )
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 8))
def attend_to_band(
    plain: Callable[..., jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cached_k: jax.Array,
    cached_v: jax.Array,
    start: jax.Array,
    limit: jax.Array,
    interpret: Any = False,
) -> jax.Array:
    """Attends from every token as far back as `limit` int32[B, T] says, in one launch.

    Args:
      plain: The attention of the arguments up to `limit`, whose gradient is this one's.
      q: [B, T, N, H], and so on as for `local_attention`.
      k: [B, T, 1, H].
      v: [B, T, 1, H].
      cached_k: [B, S, 1, H]. S may be 0, where `limit` lets no query see what stood before.
      cached_v: [B, S, 1, H].
      start: int32[B].
      limit: int32[B, T], how many tokens back each query sees.
      interpret: Parameters of Pallas' interpreter, or False.

    Returns:
      [B, T, N, H] in the dtype of q.
    """
    return _launch(plain, q, k, v, cached_k, cached_v, start, limit, interpret)


def _launch(plain, q, k, v, cached_k, cached_v, start, limit, interpret):
    del plain
    batch, time, heads, size = q.shape
    slots = cached_k.shape[1]
    kernel = importlib.import_module("griffin_jax.kernels.mosaic_gpu.band_kernel")
    groups = kernel.groups_of(batch * time * heads)
    multiple = math.lcm(_PIECE, _PIECE * groups // math.gcd(_PIECE * groups, heads))
    padding = -time % multiple
    place = jnp.arange(time, dtype=jnp.int32)
    # Every query sees something, a token that does not count itself at least.
    low = jnp.clip(place[None] - limit, -jnp.minimum(start, slots)[:, None], place[None])
    if padding:
        q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q, k, v))
        low = jnp.pad(low, ((0, 0), (0, padding)), constant_values=time)
    if not slots:
        cached_k, cached_v = (jnp.zeros((batch, _PIECE, 1, size), q.dtype) for _ in range(2))
    out = kernel.attend_to_band(
        q.reshape(batch, -1, size),
        *(x[:, :, 0] for x in (k, v, cached_k, cached_v)),
        start,
        jnp.repeat(low, heads, axis=1),
        heads=heads,
        groups=groups,
        interpret=interpret,
    )
    return out.reshape(batch, -1, heads, size)[:, :time]


def _forward(plain, q, k, v, cached_k, cached_v, start, limit, interpret):
    out = attend_to_band(plain, q, k, v, cached_k, cached_v, start, limit, interpret)
    return out, (q, k, v, cached_k, cached_v, start, limit)


def _backward(plain, interpret, saved, dout):
    del interpret
    *arrays, start, limit = saved
    return *jax.vjp(lambda *arrays: plain(*arrays, start, limit), *arrays)[1](dout), None, None


attend_to_band.defvjp(_forward, _backward)
