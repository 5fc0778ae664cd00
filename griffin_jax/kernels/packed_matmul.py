"""Products with 4-bit weights, several that share an input in one call."""

import math
from collections.abc import Sequence

import jax

from griffin_jax.kernels import packed_matmul_cpu, packed_matmul_pallas_gpu
from griffin_jax.kernels.choice import choose
from griffin_jax.kernels.dense_matmul import dense_matmul
from griffin_jax.kernels.layer_of import LayerOf
from griffin_jax.quantization.tensor import QuantizedTensor, decode


def packed_matmul(
    x: jax.Array, weights: Sequence[QuantizedTensor | LayerOf], *, kernel: str | None = None
) -> tuple[jax.Array, ...]:
    """x @ weight.T for each weight, accumulated in float32.

    Args:
      x: [..., in], a floating-point type.
      weights: 4-bit weights [out, in] of one block size, or one of a stack of them each; the
        widths may differ.
      kernel: "pallas_gpu" reads packed bytes once, for up to 64 rows of x; "table_cpu" looks up
        what a byte contributes, for up to 4 rows of x; "rows_cpu" decodes a few rows of the weight
        at a time; "reference" decodes a whole weight in x's dtype first. By default the fastest
        that serves platform and shape.

    Returns:
      [..., out] in x's dtype for each weight.

    Raises:
      ValueError: the kernel that was asked for does not serve this platform or shape.
    """
    weights = [w.take() if isinstance(w, LayerOf) else w for w in weights]
    rows = math.prod(x.shape[:-1])
    serves = {
        "pallas_gpu": packed_matmul_pallas_gpu.serves(rows, weights),
        "table_cpu": packed_matmul_cpu.table_serves(rows, weights),
        "rows_cpu": packed_matmul_cpu.rows_serves(weights),
        "reference": None,
    }
    chosen = choose("packed_matmul", serves, kernel)
    if chosen == "pallas_gpu":
        return packed_matmul_pallas_gpu.packed_matmul(x, tuple(weights))
    if chosen == "table_cpu":
        return tuple(packed_matmul_cpu.table_matmul(x, weight) for weight in weights)
    if chosen == "rows_cpu":
        return tuple(packed_matmul_cpu.rows_matmul(x, weight) for weight in weights)
    return packed_matmul_reference(x, weights)


def packed_matmul_reference(
    x: jax.Array, weights: Sequence[QuantizedTensor]
) -> tuple[jax.Array, ...]:
    """The definition; see `packed_matmul`."""
    return tuple(dense_matmul(x, decode(weight, x.dtype)) for weight in weights)
