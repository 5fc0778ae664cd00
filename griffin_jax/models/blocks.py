"""The gated MLP and the residual block around it and the temporal mixing."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from griffin_jax.config import ATTENTION, GriffinConfig
from griffin_jax.kernels.choice import choose
from griffin_jax.layer_of import LayerOf
from griffin_jax.models import residual_step
from griffin_jax.models.attention import AttentionBlock
from griffin_jax.models.layers import Linear, RMSNorm, gated_gelu, project
from griffin_jax.models.rglru import RecurrentBlock
from griffin_jax.models.state import AttentionState, RecurrentState, Timeline


class MLPBlock(nn.Module):
    """down(gelu(gate(x)) * up(x))."""

    width: int
    expanded_width: int
    use_bias: bool
    out_init_scale: float
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        linear = {
            "use_bias": self.use_bias,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        # The published code draws gate and up as one [2, D, F] array and counts a fan-in of 2 D.
        gate, up = project(
            x,
            Linear(self.expanded_width, init_scale=0.5, name="gate_proj", **linear),
            Linear(self.expanded_width, init_scale=0.5, name="up_proj", **linear),
        )
        down = Linear(self.width, init_scale=self.out_init_scale, name="down_proj", **linear)
        return down(gated_gelu(gate, up))


def drop_out(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Dropout (Srivastava et al., 2014) at a rate rounded to a multiple of 1/256: a byte decides."""
    dropped = round(256 * rate)
    kept = jax.random.bits(key, x.shape, jnp.uint8) >= dropped
    scaled = x.astype(jnp.float32) * (256 / (256 - dropped))
    return jnp.where(kept, scaled, 0).astype(x.dtype)


class ResidualBlock(nn.Module):
    """x + temporal mixing(norm(x)), then x + MLP(norm(x)).

    Attributes:
      kernel: "step_gpu" takes one token of one row in few launches; "layers" is what follows here;
        None for the fastest that serves.
    """

    config: GriffinConfig
    kind: str
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    kernel: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, state: RecurrentState | AttentionState | LayerOf, timeline: Timeline
    ) -> tuple[jax.Array, RecurrentState | AttentionState | LayerOf]:
        config = self.config
        drops = self.dropout and self.has_rng("dropout")
        if not self.is_initializing() and not drops:
            params = self.variables["params"]
            serves = {"step_gpu": residual_step.serves(config, self.kind, params, x, state)}
            if choose("residual_block", serves | {"layers": None}, self.kernel) == "step_gpu":
                plain = self.clone(parent=None, kernel="layers").apply
                return residual_step.residual_step(
                    config, self.kind, plain, params, x, state, timeline
                )
        common = {
            "width": config.width,
            "use_bias": config.projection_bias,
            "out_init_scale": 2.0 / config.num_layers,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        if self.kind == ATTENTION:
            window = config.attention_window
            mixing = AttentionBlock(
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_size=config.head_size,
                reach=window and window - config.window_includes_query,
                rope_base=config.rope_base,
                rope_fraction=config.rope_fraction,
                qkv_bias=config.attention_bias,
                name="attention_block",
                **common,
            )
        else:
            mixing = RecurrentBlock(
                recurrence_width=config.recurrence_width,
                num_blocks=config.num_heads,
                conv_width=config.conv_width,
                name="recurrent_block",
                **common,
            )
        mlp = MLPBlock(expanded_width=config.mlp_width, name="mlp_block", **common)
        norm = {"eps": config.norm_eps, "param_dtype": self.param_dtype}

        def drop(x):
            return drop_out(x, self.dropout, self.make_rng("dropout")) if drops else x

        mixed, state = mixing(RMSNorm(name="temporal_pre_norm", **norm)(x), state, timeline)
        x = x + drop(mixed)
        return x + drop(mlp(RMSNorm(name="channel_pre_norm", **norm)(x))), state
