"""Products with 8-bit weights, several that share an input in one call."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from griffin_jax.kernels import int8_matmul_pallas_tpu, rows_cpu
from griffin_jax.kernels.choice import choose
from griffin_jax.kernels.dense_matmul import dense_matmul
from griffin_jax.layer_of import LayerOf
from griffin_jax.quantization.int8 import Int8Weight


def int8_matmul(
    x: jax.Array, weights: Sequence[Int8Weight | LayerOf], *, kernel: str | None = None
) -> tuple[jax.Array, ...]:
    """Returns x @ weight.T for each weight, accumulated in float32.

    Integers of 8 bits are bfloat16, float16 and float32 numbers as they are, and a row's scale
    multiplies its sum: nothing is rounded but the result. (LLM.int8 itself rounds x to 8 bits, too,
    but for outliers.)

    Args:
      x: [..., in], a floating-point type.
      weights: 8-bit weights [out, in], or one of a stack of them each.
      kernel: "pallas_tpu" converts tiles as they are multiplied; "rows_cpu" converts a few rows of
        the weight at a time; "reference" leaves everything to XLA, which on GPUs converts integers
        inside of its products. By default the fastest that serves platform and shape.

    Returns:
      [..., out] in x's dtype for each weight.

    Raises:
      ValueError: the kernel that was asked for does not serve this platform or shape.
    """
    reasons = {
        "pallas_tpu": _first_reason(
            lambda w: int8_matmul_pallas_tpu.unsupported_reason(x, w), weights
        ),
        "rows_cpu": _first_reason(lambda w: rows_cpu.unsupported_reason(w.shape[0]), weights),
        "reference": None,
    }
    chosen = choose("int8_matmul", reasons, kernel)
    if chosen == "pallas_tpu":
        return tuple(int8_matmul_pallas_tpu.int8_matmul(x, weight) for weight in weights)
    layers = [weight.layer() for weight in weights]
    if chosen == "rows_cpu":
        return tuple(_rows_matmul(x, weight) for weight in layers)
    return int8_matmul_reference(x, layers)


def int8_matmul_reference(x: jax.Array, weights: Sequence[Int8Weight]) -> tuple[jax.Array, ...]:
    """Computes the definition; see `int8_matmul`."""

    def product(weight):
        y = dense_matmul(x, weight.rows.astype(x.dtype), dtype=jnp.float32)
        return _scaled(y, weight, x.dtype)

    return tuple(map(product, weights))


def _rows_matmul(x, weight):
    def decode(begin, count):
        return (jax.lax.dynamic_slice_in_dim(weight.rows, begin, count),)

    return _scaled(rows_cpu.matmul(x, weight.shape[0], decode), weight, x.dtype)


def _scaled(y, weight, dtype):
    """Sums over integers, float32[..., out], as what they stand for."""
    return (y * jnp.expand_dims(weight.scale, range(y.ndim - 1))).astype(dtype)


def _first_reason(reason, weights):
    return next((r for r in map(reason, weights) if r is not None), None)
