"""Products with 4-bit weights, several that share an input in one call."""

import math
from collections.abc import Sequence
from typing import Any

import jax

from griffin_jax.devices import platform
from griffin_jax.kernels import (
    packed_matmul_cpu,
    packed_matmul_mosaic_gpu,
    packed_matmul_pallas_gpu,
    packed_matmul_pallas_tpu,
)
from griffin_jax.kernels.choice import choose
from griffin_jax.kernels.dense_matmul import dense_matmul
from griffin_jax.layer_of import LayerOf
from griffin_jax.quantization.tensor import QuantizedTensor, decode, is_packed


def packed_matmul(
    x: jax.Array, weights: Sequence[QuantizedTensor | LayerOf], *, kernel: str | None = None
) -> tuple[jax.Array, ...]:
    """Returns x @ weight.T for each weight, accumulated in float32.

    Args:
      x: [..., in], a floating-point type.
      weights: 4-bit weights [out, in] of one block size, or one of a stack of them each; the
        widths may differ.
      kernel: "mosaic_gpu" looks bytes up on their way to the tensor cores of a Hopper GPU, for fewer
        than 4,096 rows of x; "decoded_gpu" decodes whole weights there, for more;
        "pallas_gpu" reads packed bytes once, for up to 64 rows of x;
        "pallas_tpu" decodes tiles to bfloat16 as they are multiplied, for any number of rows;
        "decoded_cpu" multiplies by the values that stand beside the weight; "table_cpu" looks up what
        a byte contributes, for up to 4 rows of x; "rows_cpu" decodes a few rows of the weight at a
        time; "reference" decodes a whole weight in x's dtype first. By default the fastest that
        serves platform and shape.

    Returns:
      [..., out] in x's dtype for each weight.

    Raises:
      ValueError: the kernel that was asked for does not serve this platform or shape.
    """
    rows = math.prod(x.shape[:-1])
    layers = [weight.layer() for weight in weights]
    reasons = {
        "mosaic_gpu": packed_matmul_mosaic_gpu.unsupported_reason(x, layers)
        or packed_matmul_mosaic_gpu.decoded_first(x),
        "decoded_gpu": packed_matmul_mosaic_gpu.decoded_unsupported(x, layers),
        "pallas_gpu": packed_matmul_pallas_gpu.unsupported_reason(rows, layers),
        "pallas_tpu": _first_reason(
            lambda w: packed_matmul_pallas_tpu.unsupported_reason(x, w), weights
        ),
        "decoded_cpu": packed_matmul_cpu.decoded_unsupported(x.dtype, layers),
        "table_cpu": packed_matmul_cpu.table_unsupported(rows, layers),
        "rows_cpu": packed_matmul_cpu.rows_unsupported(layers),
        "reference": None,
    }
    chosen = choose("packed_matmul", reasons, kernel)
    if chosen == "mosaic_gpu":
        return packed_matmul_mosaic_gpu.packed_matmul(x, tuple(layers))
    if chosen == "decoded_gpu":
        return packed_matmul_mosaic_gpu.decoded_matmul(x, tuple(layers))
    if chosen == "pallas_gpu":
        return packed_matmul_pallas_gpu.packed_matmul(x, tuple(layers))
    if chosen == "pallas_tpu":
        return tuple(packed_matmul_pallas_tpu.packed_matmul(x, weight) for weight in weights)
    if chosen == "decoded_cpu":
        return tuple(packed_matmul_cpu.decoded_matmul(x, weight) for weight in layers)
    if chosen == "table_cpu":
        return tuple(packed_matmul_cpu.table_matmul(x, weight) for weight in layers)
    if chosen == "rows_cpu":
        return tuple(packed_matmul_cpu.rows_matmul(x, weight) for weight in layers)
    return packed_matmul_reference(x, layers)


def lay_out(params: Any, *, consume: bool = False) -> Any:
    """Returns a tree whose 4-bit weights lie in memory as this platform's kernel reads them.

    Nothing but the order of axes in memory changes, and that on TPUs only.

    Args:
      params: A tree of parameters; its arrays may be abstract, with shardings.
      consume: Free the arrays that the weights had.
    """
    if platform() != "tpu":
        return params

    def put(leaf):
        if not is_packed(leaf):
            return leaf
        return packed_matmul_pallas_tpu.to_device_layout(leaf, consume=consume)

    return jax.tree.map(put, params, is_leaf=is_packed)


def packed_matmul_reference(
    x: jax.Array, weights: Sequence[QuantizedTensor]
) -> tuple[jax.Array, ...]:
    """Computes the definition; see `packed_matmul`."""
    return tuple(dense_matmul(x, decode(weight, x.dtype)) for weight in weights)


def _first_reason(reason, weights):
    return next((r for r in map(reason, weights) if r is not None), None)
