"""The local attention block: multi-query attention with rotary positions over a ring cache."""

import functools
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from griffin_jax.config import GriffinConfig
from griffin_jax.devices import SEQUENCE, current_mesh, per_shard, platform, time_shards
from griffin_jax.kernels.choice import choose
from griffin_jax.kernels.local_attention import attended, attention_scores, local_attention
from griffin_jax.kernels.rotary import rotate
from griffin_jax.kernels.time_shards import begin_of_shard
from griffin_jax.layer_of import LayerOf
from griffin_jax.models import attention_rows
from griffin_jax.models.attention_step import ATTENTION_STEP
from griffin_jax.models.layers import Linear, project
from griffin_jax.models.mixing import TemporalMixing
from griffin_jax.models.places import asked, place
from griffin_jax.models.state import BlockState, Timeline, array


@flax.struct.dataclass
class AttentionState(BlockState):
    """Memory of one attention block: rings of rotated keys and of values.

    Attributes:
      keys: [B, S, K, H]. Slot s holds the newest position p of the current document with
        p % S == s; `State.position` tells which slots are written.
      values: [B, S, K, H].
    """

    keys: jax.Array = array("batch", None, None, None)
    values: jax.Array = array("batch", None, None, None)
    grows: ClassVar[bool] = True

    def slots(self) -> int:
        return self.keys.shape[-3]

    def with_slots(self, slots: int) -> "AttentionState":
        # A ring with room for everything has never wrapped: position p stands in slot p.
        room = [(0, 0)] * (self.keys.ndim - 3) + [(0, slots - self.slots()), (0, 0), (0, 0)]
        return jax.tree.map(lambda ring: jnp.pad(ring, room), self)


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
    """Takes rings [B, S, K, H], or the one at the index `layer` of a stack of them."""
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


def _after(out: jax.Array, x: jax.Array) -> jax.Array:
    """Returns x [B, T, K, H], which now follows from `out` [B, T, N, H]: a NaN there is one here.

    What is written to a ring then comes after all that reads it, so it is written in place. XLA's CPU
    compiler orders nothing else, a barrier neither: it would copy both rings of a decoding step twice.
    """
    first = out[:, :, :1, :1]
    return jnp.where(jnp.isnan(first), first.astype(x.dtype), x)


def attend_and_write(
    reach: int | None,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    state: AttentionState | LayerOf,
    timeline: Timeline,
) -> tuple[jax.Array, Any]:
    """Returns `local_attention` of these tokens, and the state with their keys and values."""
    cached: Any = state.layer()
    out = local_attention(
        q,
        k,
        v,
        cached.keys.astype(q.dtype),
        cached.values.astype(q.dtype),
        timeline.start,
        timeline.positions,
        reach=reach,
        fresh=timeline.fresh,
    )
    # On a mesh the first head would have to be sent to all.
    if q.shape[1] == 1 and platform() == "cpu" and current_mesh() is None:
        k, v = _after(out, k), _after(out, v)
    return out, timeline.settle(functools.partial(write_ring, state, k, v))


class AttentionBlock(TemporalMixing):
    """Attention from each token to itself and the tokens within reach before it in its document."""

    step = ATTENTION_STEP
    rows = attention_rows.ATTENTION_ROWS

    @nn.compact
    def __call__(
        self, x: jax.Array, state: AttentionState | LayerOf, timeline: Timeline
    ) -> tuple[jax.Array, AttentionState | LayerOf]:
        config = self.config
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def linear(name, heads, axis):
            return Linear(
                heads * config.head_size,
                axes=(axis, "width"),
                use_bias=config.attention_bias,
                name=name,
                **types,
            )

        def split(y):
            return y.reshape(*y.shape[:2], -1, config.head_size)

        # The few heads of keys and values are on every device.
        kv_heads = config.num_kv_heads
        q, k, v = map(
            split,
            project(
                x,
                linear("q_proj", config.num_heads, "heads"),
                linear("k_proj", kv_heads, None),
                linear("v_proj", kv_heads, None),
            ),
        )
        positions = timeline.positions
        q = rotate(q, positions, config.rope_base, config.rope_fraction)
        k = rotate(k, positions, config.rope_base, config.rope_fraction)
        q, k, v = (
            place(self, f"attention.{name}", x) for name, x in zip("qkv", (q, k, v), strict=True)
        )
        reach = config.attention_reach
        named = asked(self, "attention.scores", "attention.weights")
        reason = attention_rows.unsupported_reason(q, k, state, timeline)
        reasons = {"mosaic_gpu": "scores are asked for" if named else reason, "reference": None}
        if choose("attention_step", reasons) == "mosaic_gpu":
            reference = functools.partial(attend_and_write, reach)
            out, after = attention_rows.attention_rows(
                reference, q, k, v, state, timeline, reach=reach
            )
        else:
            out, after = attend_and_write(reach, q, k, v, state, timeline)
        if named:
            cached: Any = state.layer()
            ring = cached.keys.astype(self.dtype), cached.values.astype(self.dtype)
            out = self.name_scores(out, q, k, v, *ring, timeline)
        out = place(self, "attention.out", out)
        out = Linear(
            config.width,
            axes=("width", "heads"),
            use_bias=config.projection_bias,
            init_scale=self.out_init_scale,
            name="o_proj",
            **types,
        )(out.reshape(*x.shape[:2], -1))
        return out, after

    def name_scores(
        self,
        out: jax.Array,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        timeline: Timeline,
    ) -> jax.Array:
        """Names scores and weights, which no kernel shows, by the definition over all pairs.

        Args:
          out: [B, T, N, H], what the kernel made of the others.
          q: [B, T, N, H], rotated.
          k: [B, T, K, H], rotated.
          v: [B, T, K, H].
          keys: [B, S, K, H], the ring.
          values: [B, S, K, H].
          timeline: Positions and lengths of the tokens.

        Returns:
          `out`, and what patches of scores and weights add to it.
        """
        if timeline.fresh:
            keys, values = keys[:, :0], values[:, :0]
        where = timeline.start, timeline.positions
        scores = attention_scores(q, k, keys, *where, reach=self.config.attention_reach)
        plain = jax.nn.softmax(scores, axis=-1)
        given = place(self, "attention.scores", scores)
        weights = plain if given is scores else jax.nn.softmax(given, axis=-1)
        weights = place(self, "attention.weights", weights)
        if weights is plain:
            return out
        return out + attended(weights - plain, v, values, timeline.start).astype(out.dtype)

    @classmethod
    def init_state(
        cls, config: GriffinConfig, batch_size: int, dtype: DTypeLike, capacity: int | None
    ) -> AttentionState:
        if config.attention_window is not None:
            capacity = config.attention_window
        if capacity is None:
            raise ValueError(
                "attention_window is None (unbounded): give the state's capacity in tokens"
            )
        shape = (batch_size, capacity, config.num_kv_heads, config.head_size)
        return AttentionState(keys=jnp.zeros(shape, dtype), values=jnp.zeros(shape, dtype))

    @classmethod
    def pair_flops(cls, config: GriffinConfig) -> int:
        return config.head_size * 4 * config.num_heads
