"""Products with 4-bit weights, several that share an input in one call."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from griffin_jax.kernels import packed_matmul_pallas_gpu
from griffin_jax.kernels.choice import choose
from griffin_jax.kernels.layer_of import LayerOf
from griffin_jax.quantization.tensor import QuantizedTensor, decode, decode_scales

# Rows decoded at a time on a CPU: with 8k columns, 2 MB in float32, which stay in the cache.
_CPU_ROWS = 64


def packed_matmul(
    x: jax.Array, weights: Sequence[QuantizedTensor | LayerOf], *, kernel: str | None = None
) -> tuple[jax.Array, ...]:
    """x @ weight.T for each weight, accumulated in float32.

    Args:
      x: [..., in], a floating-point type.
      weights: 4-bit weights [out, in] of one block size, or one of a stack of them each; the
        widths may differ.
      kernel: "pallas_gpu" reads packed bytes once, for up to 64 rows of x; "rows_cpu" decodes a few
        rows of the weight at a time; "reference" decodes a whole weight in x's dtype first. By
        default the fastest that serves platform and shape.

    Returns:
      [..., out] in x's dtype for each weight.

    Raises:
      ValueError: the kernel that was asked for does not serve this platform or shape.
    """
    weights = [w.take() if isinstance(w, LayerOf) else w for w in weights]
    rows = math.prod(x.shape[:-1])
    serves = {
        "pallas_gpu": packed_matmul_pallas_gpu.serves(rows, weights),
        "rows_cpu": _first_reason(_rows_serves, weights),
        "reference": None,
    }
    chosen = choose("packed_matmul", serves, kernel)
    if chosen == "pallas_gpu":
        return packed_matmul_pallas_gpu.packed_matmul(x, tuple(weights))
    if chosen == "rows_cpu":
        return tuple(_by_rows(x, weight) for weight in weights)
    return packed_matmul_reference(x, weights)


def packed_matmul_reference(
    x: jax.Array, weights: Sequence[QuantizedTensor]
) -> tuple[jax.Array, ...]:
    """The definition; see `packed_matmul`."""
    return tuple(dense_matmul(x, decode(weight, x.dtype)) for weight in weights)


def dense_matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x @ weight.T of two arrays of one dtype."""
    # Float32 means float32, also where a device would round the factors by default.
    precision = "highest" if x.dtype == jnp.float32 else None
    return jnp.einsum("...i,oi->...o", x, weight, precision=precision)


def _first_reason(reason, weights):
    return next((r for r in map(reason, weights) if r is not None), None)


def _rows_serves(weight):
    if weight.packed.ndim != weight.ndim:
        return f"rows of {weight.shape[1]} do not end with a block of {weight.block_size}"
    if weight.shape[0] % _CPU_ROWS:
        return f"{weight.shape[0]} rows are not a multiple of {_CPU_ROWS}"
    return None


def _by_rows(x: jax.Array, weight: QuantizedTensor) -> jax.Array:
    """A few rows at a time, so that decoded weights never leave the cache.

    In float32 whatever x's dtype: that is faster on a CPU and rounds less. Even and odd columns are
    multiplied apart: interleaving the halves of the bytes is what decoding would otherwise spend
    its time on. Every turn takes rows from all over the weight, so that each device of a mesh has
    its share of them.
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
        return dense_matmul(even, high) + dense_matmul(odd, low)

    product = jax.lax.map(rows, jnp.arange(turns))
    return jnp.moveaxis(product, 0, -1).reshape(*x.shape[:-1], -1).astype(x.dtype)
