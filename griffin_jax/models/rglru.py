"""The recurrent block of Griffin: convolution, gates and the RG-LRU."""

import functools
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from griffin_jax.config import GriffinConfig
from griffin_jax.devices import per_shard, time_shards
from griffin_jax.kernels.choice import choose
from griffin_jax.kernels.dense_matmul import block_diagonal_matmul
from griffin_jax.kernels.rg_lru import rg_lru, rg_lru_reference
from griffin_jax.kernels.time_shards import newest, preceding
from griffin_jax.models import recurrent_rows
from griffin_jax.models.layers import Linear, gated_gelu, project
from griffin_jax.models.mixing import TemporalMixing
from griffin_jax.models.parameters import parameter
from griffin_jax.models.places import asked, asked_within, place
from griffin_jax.models.recurrent_step import RECURRENT_STEP
from griffin_jax.models.state import BlockState, Timeline, array


@flax.struct.dataclass
class RecurrentState(BlockState):
    """Memory of one recurrent block.

    Attributes:
      hidden: float32[B, R], the RG-LRU's state.
      conv: [B, 3, R], the last inputs of the convolution, newest last.
    """

    hidden: jax.Array = array("batch", "recurrence")
    conv: jax.Array = array("batch", None, "recurrence")


def causal_conv(
    x: jax.Array, weight: jax.Array, bias: jax.Array, previous: jax.Array, timeline: Timeline
) -> tuple[jax.Array, jax.Array]:
    """Computes a causal depthwise convolution that does not look into the document before.

    Args:
      x: [B, T, R].
      weight: [C, R]; the last tap multiplies the current token.
      bias: [R].
      previous: [B, C - 1, R], the inputs before x, newest last.
      timeline: Positions and lengths of the tokens.

    Returns:
      The output [B, T, R], and the last C - 1 real inputs for the next call.
    """
    cut = time_shards(x.shape[1]) > 1
    sequence, kept = ("batch", "time", "recurrence"), ("batch", None, "recurrence")
    return per_shard(
        functools.partial(_causal_conv, cut),
        (x, weight, bias, previous, timeline.positions, timeline.lengths),
        (sequence, (None, "recurrence"), ("recurrence",), kept, ("batch", "time"), ("batch",)),
        ((x.shape, sequence), (previous.shape, kept)),
    )


def _causal_conv(cut, x, weight, bias, previous, positions, lengths):
    taps, time = weight.shape[0], x.shape[1]
    before = previous.astype(x.dtype)
    padded = jnp.concatenate([preceding(x, before) if cut else before, x], axis=1)
    weight = weight.astype(jnp.float32)
    y = jax.lax.broadcast_to_rank(bias.astype(jnp.float32), 3)
    for distance in range(taps):
        begin = taps - 1 - distance
        same_document = (positions >= distance)[..., None]
        window = jnp.where(same_document, padded[:, begin : begin + time], 0)
        y = y + window.astype(jnp.float32) * weight[None, None, begin]
    kept = newest(padded, lengths, taps - 1, cut)
    return y.astype(x.dtype), kept.astype(previous.dtype)


def radius_init(
    minimum: float = 0.9, maximum: float = 0.999, eps: float = 1e-8
) -> nn.initializers.Initializer:
    """Returns `a_param` such that a = exp(-softplus(a_param)) is uniform by area in a ring of
    radii.
    """

    def init(key, shape, dtype=jnp.float32):
        uniform = jax.random.uniform(key, shape, jnp.float32)
        log_radius = 0.5 * jnp.log(uniform * (maximum**2 - minimum**2) + minimum**2 + eps)
        return jnp.log(jnp.expm1(-log_radius)).astype(dtype)

    return init


class BlockDiagonalLinear(nn.Module):
    """A linear layer of `blocks` equal diagonal blocks, weight [N, R/N (in), features/N (out)].

    Attributes:
      blocks: The number of blocks, N.
      features: Outputs of all blocks; None for as many as inputs.
      dtype: The dtype of the product.
      param_dtype: The dtype of parameters that `init` makes.
    """

    blocks: int
    features: int | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = x.shape[-1] // self.blocks
        out = (self.features or x.shape[-1]) // self.blocks
        # The published initializer counts all blocks into the fan-in.
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        weight = parameter(
            self,
            "weight",
            init,
            (self.blocks, size, out),
            self.param_dtype,
            axes=("heads", "gate_inputs", None),
            kind="gate",
        )
        bias = parameter(
            self,
            "bias",
            nn.initializers.zeros,
            (self.blocks, out),
            self.param_dtype,
            axes=("heads", None),
            kind="bias",
        )
        x = x.reshape(*x.shape[:-1], self.blocks, size).astype(self.dtype)
        y = block_diagonal_matmul(x, weight)
        y = y + jax.lax.broadcast_to_rank(bias.astype(self.dtype), y.ndim)
        return y.reshape(*y.shape[:-2], -1)


class Recurrence(nn.Module):
    """What the recurrences of `RecurrentBlock` have in common.

    A subclass takes the inputs [B, T, R], the state before them and their `Timeline`, and returns the
    outputs [B, T, R] and the state after them.

    Attributes:
      num_blocks: The number of diagonal blocks of a gate.
      dtype: The dtype of the gates' products.
      param_dtype: The dtype of parameters that `init` makes.
    """

    num_blocks: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def gate(self, name: str, x: jax.Array, features: int | None = None) -> jax.Array:
        """Returns a gate of x before its sigmoid, [B, T, features or R]."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return BlockDiagonalLinear(self.num_blocks, features, name=name, **types)(x)

    def per_channel(self, name: str, init: nn.initializers.Initializer, size: int) -> jax.Array:
        """Returns a parameter with a number for each channel, [size]."""
        kind = {"axes": ("recurrence",), "kind": "recurrence"}
        return parameter(self, name, init, (size,), self.param_dtype, **kind)


class RGLRU(Recurrence):
    """Gates and recurrence; see `rg_lru`."""

    @nn.compact
    def __call__(
        self, x: jax.Array, hidden: jax.Array, timeline: Timeline
    ) -> tuple[jax.Array, jax.Array]:
        gate_x, gate_a = self.gate("input_gate", x), self.gate("a_gate", x)
        a_param = self.per_channel("a_param", radius_init(), x.shape[-1])
        arguments = x, gate_x, gate_a, a_param, hidden, timeline.positions, timeline.lengths
        if asked(self):
            return rg_lru_reference(*arguments, at=functools.partial(place, self))
        return rg_lru(*arguments)


class Conv1D(nn.Module):
    """See `causal_conv`."""

    taps: int
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, previous: jax.Array, timeline: Timeline
    ) -> tuple[jax.Array, jax.Array]:
        width = x.shape[-1]
        init = nn.initializers.variance_scaling(0.01, "fan_in", "normal")
        weight = parameter(
            self,
            "weight",
            init,
            (self.taps, width),
            self.param_dtype,
            axes=(None, "recurrence"),
            kind="conv",
        )
        bias = parameter(
            self,
            "bias",
            nn.initializers.zeros,
            (width,),
            self.param_dtype,
            axes=("recurrence",),
            kind="bias",
        )
        # The gradient keeps x alone, not a float32 copy of it for every tap.
        return jax.checkpoint(causal_conv)(x, weight, bias, previous, timeline)


class RecurrentBlock(TemporalMixing):
    """Two branches, gelu(y) and conv -> recurrence, multiplied and projected back to the width.

    Attributes:
      recurrence: The name and the class of the recurrence; a subclass may have another.
      kernel: "mosaic_gpu" takes one token of many rows on a Hopper GPU; "reference" is what follows
        here; None for the fastest that serves.
    """

    recurrence: ClassVar[tuple[str, type[Recurrence]]] = ("rg_lru", RGLRU)
    step = RECURRENT_STEP
    rows = recurrent_rows.RECURRENT_ROWS
    kernel: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, state: RecurrentState, timeline: Timeline
    ) -> tuple[jax.Array, Any]:
        name, kind = self.recurrence
        if kind is RGLRU and not (self.is_initializing() or asked_within(self)):
            params, x = self.variables["params"], x.astype(self.dtype)
            reasons = {
                "mosaic_gpu": recurrent_rows.unsupported_reason(params, x, state, timeline),
                "reference": None,
            }
            if choose("recurrent_step", reasons, self.kernel) == "mosaic_gpu":

                def reference(params, *arguments):
                    layers = self.clone(parent=None, kernel="reference")
                    return layers.apply({"params": params}, *arguments)

                return recurrent_rows.recurrent_rows(reference, params, x, state, timeline)
        config = self.config
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        linear = {"use_bias": config.projection_bias, **types}
        width = config.recurrence_width
        y, x = project(
            x,
            Linear(width, axes=("recurrence", "width"), name="linear_y", **linear),
            Linear(width, axes=("recurrence", "width"), name="linear_x", **linear),
        )
        conv_1d = Conv1D(config.conv_width, self.param_dtype, name="conv_1d")
        recurrence = kind(config.num_heads, name=name, **types)
        out = Linear(
            config.width,
            axes=("width", "recurrence"),
            init_scale=self.out_init_scale,
            name="linear_out",
            **linear,
        )

        def recur(timeline):
            h, conv = conv_1d(x, state.conv, timeline)
            h, hidden = recurrence(place(self, "conv_1d", h), state.hidden, timeline)
            return h, state.replace(hidden=hidden, conv=conv)

        h, after = recur(timeline)
        z = place(self, "gated_output", gated_gelu(y, h))
        return out(z), (lambda t: recur(t)[1]) if timeline.open else after

    @classmethod
    def init_state(
        cls, config: GriffinConfig, batch_size: int, dtype: DTypeLike, capacity: int | None
    ) -> RecurrentState:
        width = config.recurrence_width
        return RecurrentState(
            hidden=jnp.zeros((batch_size, width), jnp.float32),
            conv=jnp.zeros((batch_size, config.conv_width - 1, width), dtype),
        )

    @classmethod
    def check(cls, config: GriffinConfig) -> None:
        if config.recurrence_width % config.num_heads:
            raise ValueError(
                f"recurrence_width {config.recurrence_width} does not divide over the "
                f"{config.num_heads} gate blocks (num_heads)"
            )
