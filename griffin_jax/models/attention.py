"""The local attention block: multi-query attention with rotary positions over a ring cache."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from griffin_jax.devices import SEQUENCE, per_shard, time_shards
from griffin_jax.kernels.local_attention import local_attention
from griffin_jax.kernels.rotary import rotary_angles
from griffin_jax.kernels.time_shards import begin_of_shard
from griffin_jax.layer_of import LayerOf
from griffin_jax.models.layers import Linear, project
from griffin_jax.models.state import AttentionState, Timeline


def rotate(x: jax.Array, positions: jax.Array, base: float, fraction: float) -> jax.Array:
    """Rotary position embedding (arXiv:2104.09864) of the leading `fraction` of each head.

    Args:
      x: [B, T, N, H].
      positions: int32[B, T].
      base: The longest wavelength over 2 pi.
      fraction: Share of H that is rotated, in pairs (i, i + half) of its two halves.
    """
    size = int(x.shape[-1] * fraction)
    angle = rotary_angles(positions, base, size)[:, :, None]
    sin, cos = jnp.sin(angle).astype(x.dtype), jnp.cos(angle).astype(x.dtype)
    first, second, rest = jnp.split(x, [size // 2, size], axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def write_ring(
    state: AttentionState | LayerOf, k: jax.Array, v: jax.Array, timeline: Timeline
) -> AttentionState | LayerOf:
    """Writes the newest keys and values [B, T, K, H] of each row's last document to the ring.

    Padding, tokens that the ring has no room for, and documents that have ended are left out.
    """
    if isinstance(state, LayerOf):
        return state.replace(stack=_write(state.stack, k, v, timeline, state.index))
    return _write(state, k, v, timeline)


def _write(rings, k, v, timeline, layer=None):
    """Of rings [B, S, K, H], or of the one at the index `layer` of a stack of them."""
    if not rings.keys.shape[-3]:
        return rings
    cut = time_shards(k.shape[1]) > 1
    ring, new = ("batch", None, None, None), ("batch", "time", None, None)
    arguments = [rings.keys, rings.values, k, v, timeline.positions, timeline.lengths, timeline.end]
    names = [ring, ring, new, new, ("batch", "time"), ("batch",), ("batch",)]
    if layer is not None:
        ring = (None, *ring)
        arguments.append(layer)
        names = [ring, ring, *names[2:], ()]
    keys, values = per_shard(
        functools.partial(_write_rings, cut),
        arguments,
        names,
        ((rings.keys.shape, ring), (rings.values.shape, ring)),
    )
    return AttentionState(keys=keys, values=values)


def _write_rings(cut, keys, values, k, v, positions, lengths, end, *layer):
    batch, time = positions.shape
    slots = keys.shape[-3]
    t = jnp.arange(time, dtype=jnp.int32)[None] + (begin_of_shard(time) if cut else 0)
    begin = lengths - jnp.minimum(end, slots)
    keep = (t < lengths[:, None]) & (t >= begin[:, None])
    slot = jnp.where(keep, positions % slots, slots)  # one past the end: dropped
    row = jnp.arange(batch, dtype=jnp.int32)[:, None]

    def write(ring, new):
        new = new.astype(ring.dtype)
        if not cut:
            return ring.at[*layer, row, slot].set(new, mode="drop")
        # A slot is written by one part of the sequence, or by none.
        before = ring[*layer]
        new = jnp.zeros_like(before).at[row, slot].set(new, mode="drop")
        written = jnp.zeros((batch, slots), ring.dtype).at[row, slot].set(1, mode="drop")
        new, written = jax.lax.psum((new, written), SEQUENCE)
        after = jnp.where(written[..., None, None] > 0, new, before)
        return ring.at[*layer].set(after) if layer else after

    return write(keys, k), write(values, v)


class AttentionBlock(nn.Module):
    """Attention from each token to itself and the `reach` tokens before it in its document."""

    width: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    reach: int | None
    rope_base: float
    rope_fraction: float
    qkv_bias: bool
    use_bias: bool
    out_init_scale: float
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, state: AttentionState | LayerOf, timeline: Timeline
    ) -> tuple[jax.Array, AttentionState | LayerOf]:
        cached = state.take() if isinstance(state, LayerOf) else state
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def linear(name, heads):
            return Linear(heads * self.head_size, use_bias=self.qkv_bias, name=name, **types)

        def split(y):
            return y.reshape(*y.shape[:2], -1, self.head_size)

        kv_heads = self.num_kv_heads
        q, k, v = map(
            split,
            project(
                x,
                linear("q_proj", self.num_heads),
                linear("k_proj", kv_heads),
                linear("v_proj", kv_heads),
            ),
        )
        positions = timeline.positions
        q = rotate(q, positions, self.rope_base, self.rope_fraction)
        k = rotate(k, positions, self.rope_base, self.rope_fraction)
        out = local_attention(
            q,
            k,
            v,
            cached.keys.astype(self.dtype),
            cached.values.astype(self.dtype),
            timeline.start,
            positions,
            reach=self.reach,
            fresh=timeline.fresh,
        )
        out = Linear(
            self.width,
            use_bias=self.use_bias,
            init_scale=self.out_init_scale,
            name="o_proj",
            **types,
        )(out.reshape(*x.shape[:2], -1))
        return out, write_ring(state, k, v, timeline)
