"""4-bit products for any number of rows on Hopper GPUs, through Pallas' Mosaic backend.

The weights' bytes are read as bitsandbytes lays them out. x goes to the tensor cores in float16,
divided by 16, and weights are float16 products of their codes and sixteen times their scales: x up to
a million and scales from 1e-6 to 4,094 keep a precision beyond bfloat16's; what is larger is cut off.

Products of many rows are faster where XLA decodes a weight to memory once and a library multiplies.
"""

import functools
import importlib
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from griffin_jax.kernels.dense_matmul import dense_matmul
from griffin_jax.kernels.mosaic_gpu import backend
from griffin_jax.kernels.mosaic_gpu.operand import operand
from griffin_jax.kernels.mosaic_gpu.plan import PIECE, TILE, plan
from griffin_jax.kernels.mosaic_gpu.plan import unsupported_reason as unsupported_plan
from griffin_jax.kernels.mosaic_gpu.sharing_out import added_up
from griffin_jax.quantization.tensor import QuantizedTensor, decode, decode_scales

_BYTES_AHEAD = 9_000_000
_MOST_ROWS_AHEAD = 32
_ROWS_DECODED = 4096  # from so many on weights are decoded first; with half of them it is as fast


def unsupported_reason(x: jax.Array, weights: Sequence[QuantizedTensor]) -> str | None:
    """Returns None, or why the kernels do not serve x [..., in] under these weights."""
    if reason := backend.missing():
        return reason
    if x.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it computes in float16, not {x.dtype}"
    return fits(weights)


def decoded_first(x: jax.Array) -> str | None:
    """Returns None, or why x [..., in] is better multiplied by `decoded_matmul`."""
    rows = math.prod(x.shape[:-1])
    return f"{rows} rows, for which weights are decoded first" if rows >= _ROWS_DECODED else None


def decoded_unsupported(x: jax.Array, weights: Sequence[QuantizedTensor]) -> str | None:
    """Returns None, or why `decoded_matmul` does not serve x [..., in] under these weights."""
    if reason := unsupported_reason(x, weights):
        return reason
    return None if decoded_first(x) else f"weights are decoded first from {_ROWS_DECODED} rows on"


def fits(weights: Sequence[QuantizedTensor]) -> str | None:
    """Returns None, or why the kernel does not serve these weights."""
    first = weights[0]
    for weight in weights:
        if weight.packed.ndim != 2 or weight.ndim != 2:
            return "4-bit weights whose bytes are not in rows"
        if (weight.quant_type, weight.block_size) != (first.quant_type, first.block_size):
            return "4-bit weights of several types or block sizes"
    return unsupported_plan([weight.shape[0] for weight in weights], first.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def packed_matmul(
    x: jax.Array, weights: tuple[QuantizedTensor, ...], interpret: bool = False
) -> tuple[jax.Array, ...]:
    """Computes what `griffin_jax.kernels.packed_matmul.packed_matmul` does, all weights in one launch.

    The gradient with respect to x decodes whole weights; there is none for the weights.
    """
    leading, width = x.shape[:-1], x.shape[-1]
    rows = x.reshape(-1, width)
    products = multiply_operand(operand(rows), weights, x.dtype, interpret)
    return tuple(y[: len(rows)].reshape(*leading, -1) for y in products)


@jax.custom_vjp
def decoded_matmul(x: jax.Array, weights: tuple[QuantizedTensor, ...]) -> tuple[jax.Array, ...]:
    """Computes what `packed_matmul` does as its definition, each weight decoded in x's dtype first.

    For the gradient with respect to x they are decoded again, not kept; there is none for the weights.
    """
    return tuple(dense_matmul(x, decode(weight, x.dtype)) for weight in weights)


def multiply_operand(
    x: jax.Array,
    weights: Sequence[QuantizedTensor],
    dtype: DTypeLike,
    interpret: bool = False,
    following: QuantizedTensor | None = None,
    **options: bool,
) -> tuple[jax.Array, ...]:
    """Computes products [n, out] of `dtype` of an operand float16[n, in], see `mosaic_gpu.operand`.

    `following` is the weight of the next product, `options` are those of `plan`.
    """
    found = product_parts(x, weights, dtype, interpret, following, **options)
    return tuple(added_up(parts).astype(dtype) for parts in found)


def product_parts(
    x: jax.Array,
    weights: Sequence[QuantizedTensor],
    dtype: DTypeLike,
    interpret: bool = False,
    following: QuantizedTensor | None = None,
    **options: bool,
) -> list[jax.Array]:
    """Does what `multiply_operand` does, but leaves parts to be added up.

    Returns:
      float32[parts, n, out] for each weight, or one part in `dtype`.
    """
    kernel = importlib.import_module("griffin_jax.kernels.mosaic_gpu.packed_kernel")
    scales = [_scales(weight) for weight in weights]
    products = kernel.multiply(
        x,
        [weight.packed for weight in weights],
        scales,
        plan=_plan(x, weights, scales, **options),
        quant_type=weights[0].quant_type,
        dtype=jnp.dtype(dtype),
        interpret=interpret,
        **_fetched(x, following),
    )
    return [y if y.ndim == 3 else y[None] for y in products]


def gated_fits(gate: QuantizedTensor, up: QuantizedTensor) -> str | None:
    """Returns None, or why `gated_matmul` does not serve these weights."""
    if gate.shape != up.shape or gate.shape[0] % PIECE:
        return f"gates of {gate.shape[0]} of {up.shape[0]} outputs (needs as many, in {PIECE}s)"
    return None


def gated_matmul(
    x: jax.Array,
    gate: QuantizedTensor,
    up: QuantizedTensor,
    biases: Sequence[jax.Array],
    interpret: bool = False,
    following: QuantizedTensor | None = None,
) -> jax.Array:
    """Computes gelu(gate x + bias) * (up x + bias), an operand, of an operand float16[n, in].

    `biases` are those of both or none, `following` is the weight of the next product. It has no
    gradient.
    """
    kernel = importlib.import_module("griffin_jax.kernels.mosaic_gpu.packed_kernel")
    weights = gate, up
    scales = [_scales(weight) for weight in weights]
    [h] = kernel.multiply(
        x,
        [weight.packed for weight in weights],
        scales,
        biases,
        plan=_plan(x, weights, scales, gated=True),
        quant_type=gate.quant_type,
        interpret=interpret,
        **_fetched(x, following),
    )
    return h


def _fetched(x, weight):
    """Returns what `packed_kernel.multiply` has the cache fetch of the weight of the next product.

    It is what the blocks of that product read first. With many rows, memory is not what is waited
    for.
    """
    if weight is None or x.shape[0] > _MOST_ROWS_AHEAD:
        return {}
    out, width = weight.shape
    scales = [jax.eval_shape(_scales, weight)]
    split = plan(x.shape[0], (out,), width, scales[0].shape[1] * PIECE // width).split
    size = min(_BYTES_AHEAD // (out * split) // 128 * 128, width // 2 // split)
    return {"following": weight.packed, "fetched": (split, size)} if size else {}


def _plan(x, weights, scales, **options):
    rows, width = x.shape
    features = tuple(weight.shape[0] for weight in weights)
    return plan(rows, features, width, scales[0].shape[1] * PIECE // width, **options)


def _scales(weight):
    """Returns float32[out, in / 32 or in / 64]: larger blocks' scales are repeated."""
    scales = decode_scales(weight)
    if weight.block_size > TILE:
        scales = jnp.repeat(scales, weight.block_size // TILE, axis=1)
    return scales


def _forward(x, weights, interpret):
    return packed_matmul(x, weights, interpret), weights


def _backward(interpret, weights, gradients):
    del interpret

    def product(dy, weight):
        return jnp.einsum("...o,oi->...i", dy, decode(weight, dy.dtype))

    return sum(map(product, gradients, weights)), None


def _decoded_forward(x, weights):
    return decoded_matmul(x, weights), weights


packed_matmul.defvjp(_forward, _backward)
decoded_matmul.defvjp(_decoded_forward, functools.partial(_backward, False))
