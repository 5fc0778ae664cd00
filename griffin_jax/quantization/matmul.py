"""The one matrix product of the linear layers."""

import jax
import jax.numpy as jnp

from griffin_jax.quantization.lora_weight import LoRAWeight
from griffin_jax.quantization.tensor import QuantizedTensor, decode, decode_scales

# Rows decoded at a time on a CPU: with 8k columns, 2 MB in float32, which stay in the cache.
_CPU_ROWS = 64


def matmul(x: jax.Array, weight: jax.Array | QuantizedTensor | LoRAWeight) -> jax.Array:
    """x @ weight.T, accumulated in float32.

    Args:
      x: [..., in], a floating-point type.
      weight: [out, in], an array, a 4-bit weight or either with a low-rank addition; used in x's
        dtype (4-bit ones on a CPU in float32, which is faster there and rounds less).

    Returns:
      [..., out] in x's dtype.
    """
    if isinstance(weight, LoRAWeight):
        # For its gradient a 4-bit base is decoded again, not kept decoded.
        product = jax.checkpoint(matmul)(x, weight.base)
        return product + weight.scale * matmul(matmul(x, weight.a), weight.b)
    if not isinstance(weight, QuantizedTensor):
        return _dense(x, weight.astype(x.dtype))
    if weight.packed.ndim != weight.ndim or weight.shape[0] % _CPU_ROWS:
        return _decoded(x, weight)
    return jax.lax.platform_dependent(x, weight, cpu=_by_rows, default=_decoded)


def _dense(x: jax.Array, weight: jax.Array) -> jax.Array:
    # Float32 means float32, also where a device would round the factors by default.
    precision = "highest" if x.dtype == jnp.float32 else None
    return jnp.einsum("...i,oi->...o", x, weight, precision=precision)


def _decoded(x: jax.Array, weight: QuantizedTensor) -> jax.Array:
    return _dense(x, decode(weight, x.dtype))


def _by_rows(x: jax.Array, weight: QuantizedTensor) -> jax.Array:
    """A few rows at a time, so that decoded weights never leave the cache.

    Even and odd columns are multiplied apart: interleaving the halves of the bytes is what decoding
    would otherwise spend its time on. Every turn takes rows from all over the weight, so that each
    device of a mesh has its share of them.
    """
    even = x[..., ::2].astype(jnp.float32)
    odd = x[..., 1::2].astype(jnp.float32)
    turns = weight.shape[0] // _CPU_ROWS
    packed = weight.packed.reshape(_CPU_ROWS, turns, -1)
    scales = decode_scales(weight).reshape(_CPU_ROWS, turns, -1)

    @jax.checkpoint
    def rows(turn):
        codes = jax.lax.dynamic_index_in_dim(packed, turn, axis=1, keepdims=False)
        scale = jax.lax.dynamic_index_in_dim(scales, turn, axis=1, keepdims=False)
        scale = jnp.repeat(scale, weight.block_size // 2, axis=1)
        high = weight.code[codes >> 4] * scale
        low = weight.code[codes & 15] * scale
        return _dense(even, high) + _dense(odd, low)

    product = jax.lax.map(rows, jnp.arange(turns))
    return jnp.moveaxis(product, 0, -1).reshape(*x.shape[:-1], -1).astype(x.dtype)
