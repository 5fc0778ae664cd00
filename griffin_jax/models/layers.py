"""Linear layers, normalisation and the embedding."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from griffin_jax.devices import constrain
from griffin_jax.kernels.dense_matmul import dense_matmul
from griffin_jax.kernels.rms_norm import rms_norm
from griffin_jax.models.linear import matmuls
from griffin_jax.sharding.layouts import gather_fsdp, split_here

Initializer = nn.initializers.Initializer


def parameter(
    module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...], dtype: DTypeLike
):
    """Declares a parameter that may also be a packed pytree, which `Module.param` refuses.

    Raises:
      ValueError: the parameter that is there has another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, shape, dtype)
    value = module.get_variable("params", name)
    if tuple(value.shape) != tuple(shape):
        path = "/".join((*module.path, name))
        raise ValueError(
            f"parameter {path} has shape {tuple(value.shape)}, the config says {shape}"
        )
    return gather_fsdp("/".join((*module.path, name)), value)


def fan_in(scale: float = 1.0) -> Initializer:
    """Normal weights [out, in] of variance scale / in."""
    return nn.initializers.variance_scaling(scale, "fan_in", "normal", in_axis=-1, out_axis=-2)


class Linear(nn.Module):
    """y = x W^T + b, with W [out, in] an array or a packed 4-bit tensor."""

    features: int
    use_bias: bool = True
    init_scale: float = 1.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        return project(x, self)[0]

    @nn.compact
    def parameters(self, width: int) -> tuple:
        """The weight for inputs of this width, and the bias or None."""
        weight = parameter(
            self, "weight", fan_in(self.init_scale), (self.features, width), self.param_dtype
        )
        if not self.use_bias:
            return weight, None
        zeros = nn.initializers.zeros
        return weight, parameter(self, "bias", zeros, (self.features,), self.param_dtype)


def project(x: jax.Array, *layers: Linear) -> tuple[jax.Array, ...]:
    """What each layer makes of x, [..., features]; they share a dtype and read x together."""
    dtype = layers[0].dtype
    weights, biases = zip(*(layer.parameters(x.shape[-1]) for layer in layers), strict=True)
    splits = [split_here("/".join(layer.path)) for layer in layers]

    def add(y, bias):
        return y if bias is None else y + jax.lax.broadcast_to_rank(bias.astype(dtype), y.ndim)

    return tuple(map(add, matmuls(x.astype(dtype), weights, splits), biases))


@jax.checkpoint
def gated_gelu(gate: jax.Array, x: jax.Array) -> jax.Array:
    """gelu(gate) * x; the gradient computes the gelu again and keeps none of what is in it."""
    return nn.gelu(gate) * x


class RMSNorm(nn.Module):
    """Root mean square normalisation with a scale around one."""

    eps: float
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = parameter(self, "scale", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        return rms_norm(x, scale, self.eps)


class Embedder(nn.Module):
    """The token embedding [V, D], which is the output head too where the head is tied."""

    vocab_size: int
    width: int
    scale: bool
    round_scale: bool = True
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self):
        self.embedding = parameter(
            self, "embedding", fan_in(), (self.vocab_size, self.width), self.param_dtype
        )

    def encode(self, tokens: jax.Array) -> jax.Array:
        """int32[B, T] -> [B, T, D]."""
        x = embed(self.embedding, tokens).astype(self.dtype)
        if self.scale:
            # RecurrentGemma was trained with the factor rounded to bfloat16.
            rounded = jnp.bfloat16 if self.round_scale else self.dtype
            x = x * jnp.asarray(self.width**0.5, rounded).astype(self.dtype)
        return x

    def decode(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> float32[B, T, V]."""
        return head(x, self.embedding)


@jax.custom_vjp
def embed(embedding: jax.Array, tokens: jax.Array) -> jax.Array:
    """The rows of embedding [V, D] at tokens int32[B, T], [B, T, D]."""
    if jax.default_backend() != "cpu" or embedding.dtype != jnp.bfloat16:
        return embedding[tokens]
    # XLA's CPU compiler gathers from a float32 copy. Tied to the tokens, it is made of the rows
    # that are read; otherwise, of the whole table before a loop.
    embedding, tokens = jax.lax.optimization_barrier((embedding, tokens))
    return embedding[tokens]


def _embed_forward(embedding, tokens):
    return embed(embedding, tokens), (embedding, tokens)


def _embed_backward(residuals, dx):
    embedding, tokens = residuals
    # Rows of all devices that share the width's parts, each part on its device.
    dx = constrain(dx, "copies", "time", "width")
    return jnp.zeros_like(embedding).at[tokens].add(dx.astype(embedding.dtype)), None


embed.defvjp(_embed_forward, _embed_backward)


@jax.custom_vjp
def head(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Logits float32[B, T, V] of x [B, T, D] under the rows of weight [V, D]."""
    return dense_matmul(x, weight, dtype=jnp.float32)


def _head_forward(x, weight):
    return head(x, weight), (x, weight)


def _head_backward(residuals, dlogits):
    # In the dtype of x: a float32 gradient would make both products float32 ones, the largest of
    # the whole model.
    x, weight = residuals
    dlogits = dlogits.astype(x.dtype)
    precision = "highest" if x.dtype == jnp.float32 else None
    dx = jnp.einsum("btv,vd->btd", dlogits, weight.astype(x.dtype), precision=precision)
    dweight = jnp.einsum("btv,btd->vd", dlogits, x, precision=precision)
    return dx, dweight.astype(weight.dtype)


head.defvjp(_head_forward, _head_backward)
