"""The matrix products of the linear layers, whatever kind their weights are of."""

from collections.abc import Sequence

import jax

from griffin_jax.kernels.dense_matmul import dense_matmul
from griffin_jax.kernels.layer_of import LayerOf
from griffin_jax.kernels.packed_matmul import packed_matmul
from griffin_jax.quantization.lora_weight import LoRAWeight
from griffin_jax.quantization.tensor import QuantizedTensor

Weight = jax.Array | QuantizedTensor | LayerOf | LoRAWeight
_PACKED = (QuantizedTensor, LayerOf)


def matmul(x: jax.Array, weight: Weight) -> jax.Array:
    """x @ weight.T, accumulated in float32.

    Args:
      x: [..., in], a floating-point type.
      weight: [out, in], an array, a 4-bit weight, one of a stack of these, or any with a low-rank
        addition; used in x's dtype (4-bit ones by some kernels in float32, which rounds less).

    Returns:
      [..., out] in x's dtype.
    """
    if isinstance(weight, LoRAWeight):
        # For its gradient a 4-bit base is decoded again, not kept decoded.
        product = jax.checkpoint(matmul)(x, weight.base)
        return product + weight.scale * matmul(matmul(x, weight.a), weight.b)
    if isinstance(weight, _PACKED):
        return packed_matmul(x, [weight])[0]
    return dense_matmul(x, weight)


def matmuls(x: jax.Array, weights: Sequence[Weight]) -> tuple[jax.Array, ...]:
    """`matmul` of one input with several weights; 4-bit ones are read in one product."""
    if all(isinstance(weight, _PACKED) for weight in weights):
        return packed_matmul(x, weights)
    return tuple(matmul(x, weight) for weight in weights)
