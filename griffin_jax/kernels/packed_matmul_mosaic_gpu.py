"""4-bit products for any number of rows on Hopper GPUs, through Pallas' Mosaic backend.

The weights' bytes are read as bitsandbytes lays them out. x goes to the tensor cores in float16,
divided by 16, and weights are float16 products of their codes and sixteen times their scales: x up to
a million and scales from 1e-6 to 4,094 keep a precision beyond bfloat16's; what is larger is cut off.
"""

import functools
import importlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from griffin_jax.kernels.mosaic_gpu import backend
from griffin_jax.kernels.mosaic_gpu.plan import TILE, padded_rows, plan
from griffin_jax.kernels.mosaic_gpu.plan import unsupported_reason as unsupported_plan
from griffin_jax.quantization.tensor import QuantizedTensor, decode, decode_scales

_DIVISOR = 16.0
_LARGEST = 65504.0  # of float16


def unsupported_reason(x: jax.Array, weights: Sequence[QuantizedTensor]) -> str | None:
    """None, or why the kernel does not serve x [..., in] under these weights."""
    if reason := backend.missing():
        return reason
    if x.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it computes in float16, not {x.dtype}"
    return fits(weights)


def fits(weights: Sequence[QuantizedTensor]) -> str | None:
    """None, or why the kernel does not serve these weights."""
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
    """As `griffin_jax.kernels.packed_matmul.packed_matmul`, all weights in one launch.

    The gradient with respect to x decodes whole weights; there is none for the weights.
    """
    kernel = importlib.import_module("griffin_jax.kernels.mosaic_gpu.packed_kernel")
    leading, width = x.shape[:-1], x.shape[-1]
    rows = x.size // width
    padded = padded_rows(rows)
    halves = jnp.clip(x.reshape(rows, width).astype(jnp.float32) / _DIVISOR, -_LARGEST, _LARGEST)
    halves = jnp.pad(halves.astype(jnp.float16), ((0, padded - rows), (0, 0)))
    scales = [_scales(weight) for weight in weights]
    products = kernel.multiply(
        kernel.reorder(halves),
        [weight.packed for weight in weights],
        scales,
        plan=plan(
            padded,
            tuple(weight.shape[0] for weight in weights),
            width,
            scales[0].shape[1] * 256 // width,
        ),
        quant_type=weights[0].quant_type,
        dtype=jnp.dtype(x.dtype),
        interpret=interpret,
    )
    sums = [y.sum(axis=0) if y.ndim == 3 else y for y in products]
    return tuple(y[:rows].astype(x.dtype).reshape(*leading, -1) for y in sums)


def _scales(weight):
    """float32[out, in / 32 or in / 64]: larger blocks' scales are repeated."""
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


packed_matmul.defvjp(_forward, _backward)
