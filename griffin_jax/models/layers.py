"""Linear layers, normalization and the embedding."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from griffin_jax.devices import constrain
from griffin_jax.kernels.dense_matmul import dense_matmul
from griffin_jax.kernels.rms_norm import rms_norm
from griffin_jax.models.linear import matmuls
from griffin_jax.models.parameters import fan_in, parameter
from griffin_jax.sharding.layouts import split_here


class Linear(nn.Module):
    """y = x W^T + b, with W [out, in] an array or a `Weight`.

    Attributes:
      features: Outputs.
      axes: What the two dimensions of W are, see `devices.LOGICAL_AXES`.
      use_bias: There is a b.
      init_scale: The variance of W's entries times the number of inputs.
      dtype: The dtype of the product.
      param_dtype: The dtype of parameters that `init` makes.
    """

    features: int
    axes: tuple[str | None, str | None] = (None, None)
    use_bias: bool = True
    init_scale: float = 1.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        return project(x, self)[0]

    @nn.compact
    def parameters(self, width: int) -> tuple:
        """Returns the weight for inputs of this width, and the bias or None."""
        weight = parameter(
            self,
            "weight",
            fan_in(self.init_scale),
            (self.features, width),
            self.param_dtype,
            axes=self.axes,
            kind="linear",
        )
        if not self.use_bias:
            return weight, None
        # A vector of the residual stream's width is whole on every device.
        axis = None if self.axes[0] == "width" else self.axes[0]
        bias = parameter(
            self,
            "bias",
            nn.initializers.zeros,
            (self.features,),
            self.param_dtype,
            axes=(axis,),
            kind="bias",
        )
        return weight, bias


def project(x: jax.Array, *layers: Linear) -> tuple[jax.Array, ...]:
    """Returns what each layer makes of x, [..., features]; they share a dtype and read x
    together.
    """
    dtype = layers[0].dtype
    weights, biases = zip(*(layer.parameters(x.shape[-1]) for layer in layers), strict=True)
    splits = [split_here(layer.axes) for layer in layers]

    def add(y, bias):
        return y if bias is None else y + jax.lax.broadcast_to_rank(bias.astype(dtype), y.ndim)

    return tuple(map(add, matmuls(x.astype(dtype), weights, splits), biases))


@jax.checkpoint
def gated_gelu(gate: jax.Array, x: jax.Array) -> jax.Array:
    """Returns gelu(gate) * x, rounded once; the gradient computes the gelu again and keeps none of
    it.
    """
    return (nn.gelu(gate.astype(jnp.float32)) * x.astype(jnp.float32)).astype(x.dtype)


class RMSNorm(nn.Module):
    """Root mean square normalization with a scale around one."""

    eps: float
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = parameter(
            self,
            "scale",
            nn.initializers.zeros,
            x.shape[-1:],
            self.param_dtype,
            axes=(None,),
            kind="norm",
        )
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
            self,
            "embedding",
            fan_in(),
            (self.vocab_size, self.width),
            self.param_dtype,
            axes=("vocabulary", "width"),
            kind="embedding",
        )

    def encode(self, tokens: jax.Array) -> jax.Array:
        """Maps int32[B, T] to [B, T, D]."""
        x = embed(self.embedding, tokens).astype(self.dtype)
        if self.scale:
            # RecurrentGemma was trained with the factor rounded to bfloat16.
            rounded = jnp.bfloat16 if self.round_scale else self.dtype
            x = x * jnp.asarray(self.width**0.5, rounded).astype(self.dtype)
        return x

    def decode(self, x: jax.Array) -> jax.Array:
        """Maps [B, T, D] to logits float32[B, T, V]."""
        return head(x, self.embedding)


@jax.custom_vjp
def embed(embedding: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns the rows of embedding [V, D] at tokens int32[B, T], [B, T, D]."""
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
    """Returns logits float32[B, T, V] of x [B, T, D] under the rows of weight [V, D]."""
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


def products(x: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns the product of each x [..., D] with rows [..., K, D] of its own, [..., K].

    Sums are taken by halves: in float32 that is the same order, and one of few roundings, whatever
    the other dimensions are.
    """
    terms = x[..., None, :] * rows.astype(x.dtype)
    while (width := terms.shape[-1]) > 1:
        if width % 2:
            terms = jnp.pad(terms, ((0, 0),) * (terms.ndim - 1) + ((0, 1),))
        half = (width + 1) // 2
        terms = terms[..., :half] + terms[..., half:]
    return terms[..., 0]
