"""The recurrent block of Griffin: convolution, gates and the RG-LRU (arXiv:2402.19427, 2.4)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from griffin_jax.kernels.linear_recurrence import linear_recurrence
from griffin_jax.models.layers import Linear, parameter
from griffin_jax.models.state import RecurrentState, Timeline

_C = 8.0  # the paper's constant c
_MAX_SQRT_GRADIENT = 1000.0


@jax.custom_vjp
def sqrt_bounded_gradient(x: jax.Array) -> jax.Array:
    """A square root whose derivative is clipped at 1,000, as published; else bfloat16 gives NaN."""
    return jnp.sqrt(x)


def _sqrt_forward(x):
    return jnp.sqrt(x), x


def _sqrt_backward(x, g):
    return (g * 0.5 * jax.lax.rsqrt(jnp.maximum(x, 0.25 / _MAX_SQRT_GRADIENT**2)),)


sqrt_bounded_gradient.defvjp(_sqrt_forward, _sqrt_backward)


def causal_conv(
    x: jax.Array, weight: jax.Array, bias: jax.Array, previous: jax.Array, timeline: Timeline
) -> tuple[jax.Array, jax.Array]:
    """A causal depthwise convolution that does not look into the document before.

    Args:
      x: [B, T, R].
      weight: [C, R]; the last tap multiplies the current token.
      bias: [R].
      previous: [B, C - 1, R], the inputs before x, newest last.
      timeline: Positions and lengths of the tokens.

    Returns:
      The output [B, T, R], and the last C - 1 real inputs for the next call.
    """
    taps, time = weight.shape[0], x.shape[1]
    padded = jnp.concatenate([previous.astype(x.dtype), x], axis=1)
    y = bias.astype(jnp.float32)
    for distance in range(taps):
        begin = taps - 1 - distance
        same_document = (timeline.positions >= distance)[..., None]
        window = jnp.where(same_document, padded[:, begin : begin + time], 0)
        y = y + window.astype(jnp.float32) * weight[begin].astype(jnp.float32)
    newest = timeline.lengths[:, None] + jnp.arange(taps - 1)
    kept = jnp.take_along_axis(padded, newest[..., None], axis=1)
    return y.astype(x.dtype), kept.astype(previous.dtype)


def rg_lru(
    x: jax.Array,
    gate_x: jax.Array,
    gate_a: jax.Array,
    a_param: jax.Array,
    hidden: jax.Array,
    timeline: Timeline,
) -> tuple[jax.Array, jax.Array]:
    """The real-gated linear recurrent unit, in float32.

        log a_t = -c softplus(a_param) sigmoid(gate_a_t)
        h_t     = a_t h_{t-1} + sqrt(1 - a_t^2) (sigmoid(gate_x_t) x_t)

    At position 0 the state is forgotten and the input enters unscaled (a_t = 0).

    Args:
      x: [B, T, R], the inputs.
      gate_x: [B, T, R], the input gate before its sigmoid.
      gate_a: [B, T, R], the recurrence gate before its sigmoid.
      a_param: [R].
      hidden: float32[B, R], the state before the first token.
      timeline: Positions and lengths of the tokens. Padding leaves the state as it is.

    Returns:
      h [B, T, R] in the dtype of x, and the state after each row's last real token, float32[B, R].
    """
    f32 = jnp.float32
    log_a = -_C * jax.nn.sigmoid(gate_a.astype(f32)) * jax.nn.softplus(a_param.astype(f32))
    inputs = x.astype(f32) * jax.nn.sigmoid(gate_x.astype(f32))
    real = timeline.real[..., None]
    reset = (timeline.positions == 0)[..., None]
    multiplier = jnp.where(reset, 1.0, sqrt_bounded_gradient(-jnp.expm1(2 * log_a)))
    a = jnp.where(real, jnp.where(reset, 0.0, jnp.exp(log_a)), 1.0)
    inputs = jnp.where(real, inputs * multiplier, 0.0)
    h = linear_recurrence(inputs, a, hidden)
    return h.astype(x.dtype), h[:, -1]


def radius_init(
    minimum: float = 0.9, maximum: float = 0.999, eps: float = 1e-8
) -> nn.initializers.Initializer:
    """`a_param` such that a = exp(-softplus(a_param)) is uniform by area in a ring of radii."""

    def init(key, shape, dtype=jnp.float32):
        uniform = jax.random.uniform(key, shape)
        log_radius = 0.5 * jnp.log(uniform * (maximum**2 - minimum**2) + minimum**2 + eps)
        return jnp.log(jnp.expm1(-log_radius)).astype(dtype)

    return init


class BlockDiagonalLinear(nn.Module):
    """A linear layer of `blocks` equal diagonal blocks, weight [N, R/N (in), R/N (out)]."""

    blocks: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = x.shape[-1] // self.blocks
        # The published initialiser counts all blocks into the fan-in.
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        weight = parameter(self, "weight", init, (self.blocks, size, size), self.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros, (self.blocks, size), self.param_dtype)
        x = x.reshape(*x.shape[:-1], self.blocks, size).astype(self.dtype)
        y = jnp.einsum(
            "btni,nij->btnj",
            x,
            weight.astype(self.dtype),
            precision="highest" if self.dtype == jnp.float32 else None,
        )
        y = y + bias.astype(self.dtype)
        return y.reshape(*y.shape[:-2], -1)


class RGLRU(nn.Module):
    """Gates and recurrence; see `rg_lru`."""

    num_blocks: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, hidden: jax.Array, timeline: Timeline
    ) -> tuple[jax.Array, jax.Array]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        gate_x = BlockDiagonalLinear(self.num_blocks, name="input_gate", **types)(x)
        gate_a = BlockDiagonalLinear(self.num_blocks, name="a_gate", **types)(x)
        a_param = parameter(self, "a_param", radius_init(), x.shape[-1:], self.param_dtype)
        return rg_lru(x, gate_x, gate_a, a_param, hidden, timeline)


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
        weight = parameter(self, "weight", init, (self.taps, width), self.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros, (width,), self.param_dtype)
        return causal_conv(x, weight, bias, previous, timeline)


class RecurrentBlock(nn.Module):
    """Two branches, gelu(y) and conv -> RG-LRU, multiplied and projected back to the width."""

    width: int
    recurrence_width: int
    num_blocks: int
    conv_width: int
    use_bias: bool
    out_init_scale: float
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, state: RecurrentState, timeline: Timeline
    ) -> tuple[jax.Array, RecurrentState]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        linear = {"use_bias": self.use_bias, **types}
        y = nn.gelu(Linear(self.recurrence_width, name="linear_y", **linear)(x))
        x = Linear(self.recurrence_width, name="linear_x", **linear)(x)
        x, conv = Conv1D(self.conv_width, self.param_dtype, name="conv_1d")(x, state.conv, timeline)
        x, hidden = RGLRU(self.num_blocks, name="rg_lru", **types)(x, state.hidden, timeline)
        x = Linear(self.width, init_scale=self.out_init_scale, name="linear_out", **linear)(x * y)
        return x, RecurrentState(hidden=hidden, conv=conv)
