"""The gated MLP and the residual block around it and the temporal mixing."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from griffin_jax.config import GriffinConfig
from griffin_jax.kernels.choice import choose
from griffin_jax.layer_of import LayerOf
from griffin_jax.models import gated_mlp, residual_rows, residual_step
from griffin_jax.models.attention import AttentionBlock
from griffin_jax.models.gated_recurrences import CGLRUBlock, GRUBlock, LRUBlock, MambaBlock
from griffin_jax.models.layers import Linear, RMSNorm, gated_gelu, project
from griffin_jax.models.mixing import TemporalMixing
from griffin_jax.models.places import asked, asked_within, place
from griffin_jax.models.residual_rows import ResidualStream, added_up
from griffin_jax.models.rglru import RecurrentBlock
from griffin_jax.models.state import BlockState, State, Timeline

# A row for each kind of temporal mixing that `GriffinConfig.block_pattern` may name.
BLOCKS: dict[str, type[TemporalMixing]] = {
    "recurrent": RecurrentBlock,
    "attention": AttentionBlock,
    "lru": LRUBlock,
    "gru": GRUBlock,
    "mamba": MambaBlock,
    "cg_lru": CGLRUBlock,
}


def block_of(kind: str) -> type[TemporalMixing]:
    """Returns the temporal mixing of a kind.

    Raises:
      ValueError: there is no such kind; the message lists those there are.
    """
    if kind not in BLOCKS:
        raise ValueError(
            f"block_pattern names {kind!r}, which is no kind of block; there are "
            f"{', '.join(BLOCKS)} (griffin_jax.models.blocks.BLOCKS)"
        )
    return BLOCKS[kind]


def check_blocks(config: GriffinConfig) -> None:
    """Raises ValueError where a model has blocks of no known kind, or of sizes they do not take."""
    for kind in dict.fromkeys(config.block_types):
        block_of(kind).check(config)


def init_state(
    config: GriffinConfig,
    batch_size: int,
    dtype: DTypeLike = jnp.float32,
    capacity: int | None = None,
) -> State:
    """Returns the state before the first token.

    Args:
      config: The model's shape.
      batch_size: Number of rows, B.
      dtype: The dtype of keys, values and convolution inputs; the RG-LRU's state is always float32.
      capacity: Slots of the attention rings, S. Defaults to the attention window. Must be given
        when the window is unbounded; keys beyond it are then forgotten, oldest first.

    Raises:
      ValueError: the window is unbounded and no capacity is given.
    """
    blocks = (
        block_of(kind).init_state(config, batch_size, dtype, capacity)
        for kind in config.block_types
    )
    return State(position=jnp.zeros(batch_size, jnp.int32), blocks=tuple(blocks))


class MLPBlock(nn.Module):
    """down(gelu(gate(x)) * up(x)).

    Attributes:
      kernel: "mosaic_gpu" multiplies in two launches on a Hopper GPU, see `gated_mlp`; "reference" is
        what follows here; None for the fastest that serves.
    """

    width: int
    expanded_width: int
    use_bias: bool
    out_init_scale: float
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    kernel: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if not (self.is_initializing() or asked(self)):
            params = self.variables["params"]
            x = x.astype(self.dtype)
            reasons = {"mosaic_gpu": gated_mlp.unsupported_reason(params, x), "reference": None}
            if choose("mlp_block", reasons, self.kernel) == "mosaic_gpu":

                def reference(params, x):
                    layers = self.clone(parent=None, kernel="reference")
                    return layers.apply({"params": params}, x)

                return gated_mlp.gated_mlp(reference, params, x)
        linear = {
            "use_bias": self.use_bias,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        # The published code draws gate and up as one [2, D, F] array and counts a fan-in of 2 D.
        expand = {"axes": ("features", "width"), "init_scale": 0.5}
        gate, up = project(
            x,
            Linear(self.expanded_width, name="gate_proj", **expand, **linear),
            Linear(self.expanded_width, name="up_proj", **expand, **linear),
        )
        gate, up = place(self, "mlp.gate", gate), place(self, "mlp.up", up)
        down = Linear(
            self.width,
            axes=("width", "features"),
            init_scale=self.out_init_scale,
            name="down_proj",
            **linear,
        )
        return place(self, "mlp.out", down(place(self, "mlp.hidden", gated_gelu(gate, up))))


def drop_out(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Applies dropout (Srivastava et al., 2014) at a rate rounded to a multiple of 1/256: a byte
    decides.
    """
    dropped = round(256 * rate)
    kept = jax.random.bits(key, x.shape, jnp.uint8) >= dropped
    scaled = x.astype(jnp.float32) * (256 / (256 - dropped))
    return jnp.where(kept, scaled, 0).astype(x.dtype)


class ResidualBlock(nn.Module):
    """x + temporal mixing(norm(x)), then x + MLP(norm(x)).

    Attributes:
      adds_up: Whether to return the residual stream as an array; otherwise it may come with what a
        later block adds up.
      kernel: "step_gpu" takes one token of one row in few launches, "mosaic_gpu" one of many rows, see
        `residual_rows`; "reference" is what follows here; None for the fastest that serves.
    """

    config: GriffinConfig
    kind: str
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    adds_up: bool = True
    kernel: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array | ResidualStream, state: BlockState | LayerOf, timeline: Timeline
    ) -> tuple[Any, BlockState | LayerOf]:
        config = self.config
        drops = self.dropout and self.has_rng("dropout")
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        block, name = block_of(self.kind), f"{self.kind}_block"
        if not (self.is_initializing() or drops or asked_within(self)):
            params = self.variables["params"]
            whole = residual_rows.shape_of(x)
            reasons = {
                "step_gpu": residual_step.unsupported_reason(
                    config, block.step, name, params, whole, state
                ),
                "mosaic_gpu": residual_rows.unsupported_reason(params, whole, state, timeline),
                "reference": None,
            }
            chosen = choose("residual_block", reasons, self.kernel)
            if chosen == "step_gpu":
                reference = self.clone(parent=None, adds_up=True, kernel="reference").apply
                return residual_step.residual_step(
                    config, block.step, name, reference, params, added_up(x), state, timeline
                )
            if chosen == "mosaic_gpu":
                x, after = self._by_rows(block, name, params, x, state, timeline)
                return (added_up(x) if self.adds_up else x), after
        x = added_up(x)
        mixing = block(config, name=name, **types)
        mlp = self.mlp(name="mlp_block")
        norm = {"eps": config.norm_eps, "param_dtype": self.param_dtype}

        def drop(x):
            return drop_out(x, self.dropout, self.make_rng("dropout")) if drops else x

        def normed(name, x):
            return place(self, name, RMSNorm(name=name, **norm)(x))

        x = place(self, "resid_pre", x)
        mixed, state = mixing(normed("temporal_pre_norm", x), state, timeline)
        x = place(self, "resid_mid", x + drop(place(self, "temporal_out", mixed)))
        x = x + drop(mlp(normed("channel_pre_norm", x)))
        return place(self, "resid_post", x), state

    def _by_rows(self, block, name, params, *arguments):
        """Returns what `residual_rows` makes of x, state and timeline."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        layers = self.clone(parent=None, adds_up=True, kernel="reference")
        mixing, mlp = block(self.config, parent=None, **types), self.mlp(parent=None)

        def called(module):
            return lambda params, *arguments: module.apply({"params": params}, *arguments)

        return residual_rows.residual_rows(
            *(self.config, block.rows, name, called(layers), (called(mixing), called(mlp))),
            *(params, *arguments),
        )

    def mlp(self, **options: Any) -> MLPBlock:
        """Returns the block's MLP; `options` are its name or its parent."""
        config = self.config
        return MLPBlock(
            config.width,
            config.mlp_width,
            use_bias=config.projection_bias,
            out_init_scale=2.0 / config.num_layers,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            **options,
        )
