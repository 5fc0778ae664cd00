"""NF4 and FP4 as a row of the table of formats; see `formats.Format`."""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from griffin_jax.quantization import codes, tensor
from griffin_jax.quantization.bitsandbytes import from_arrays, to_arrays
from griffin_jax.quantization.config import QuantizationConfig
from griffin_jax.quantization.tensor import QuantizedTensor

__all__ = [
    "MARK",
    "abstract",
    "from_arrays",
    "from_metadata",
    "metadata",
    "noise",
    "pack",
    "settings_of",
    "to_arrays",
    "weight_of",
]

MARK = "quant_state"
_PART = re.compile(r"(.*?\.weight)\..*")


def pack(
    weight: jax.Array | np.ndarray,
    settings: QuantizationConfig,
    *,
    block_size: int = 64,
    name: str = "weight",
) -> QuantizedTensor:
    return tensor.quantize(
        weight,
        settings.bnb_4bit_quant_type,
        block_size=block_size,
        double_quant=settings.bnb_4bit_use_double_quant,
        name=name,
    )


def abstract(
    shape: tuple[int, ...],
    dtype: DTypeLike,
    settings: QuantizationConfig,
    *,
    block_size: int = 64,
) -> QuantizedTensor:
    return tensor.abstract(
        shape,
        dtype,
        settings.bnb_4bit_quant_type,
        block_size=block_size,
        double_quant=settings.bnb_4bit_use_double_quant,
    )


def noise(key: jax.Array, weight: QuantizedTensor) -> QuantizedTensor:
    """Draws random bytes under equal scales."""
    code = codes.CODE_BOOKS[weight.quant_type]
    scale = np.float32(weight.shape[-1] ** -0.5 / np.sqrt(np.mean(np.square(code))))
    drawn = weight.replace(packed=_bytes(key, weight.packed.shape), code=jnp.asarray(code))
    if not weight.double_quantized:
        return drawn.replace(absmax=jnp.full(weight.absmax.shape, scale))
    return drawn.replace(
        absmax=_bytes(jax.random.fold_in(key, 1), weight.absmax.shape),
        nested_absmax=jnp.full(weight.nested_absmax.shape, scale / 4),
        nested_code=jnp.asarray(codes.dynamic_map()),
        nested_offset=jnp.asarray(scale),
    )


@functools.partial(jax.jit, static_argnames="shape")
def _bytes(key, shape):
    return jax.random.bits(key, shape, jnp.uint8)


def settings_of(weight: QuantizedTensor) -> QuantizationConfig:
    return QuantizationConfig(
        bnb_4bit_quant_type=weight.quant_type, bnb_4bit_use_double_quant=weight.double_quantized
    )


def metadata(weight: QuantizedTensor) -> dict[str, Any]:
    return {
        "dtype": weight.dtype.name,
        "quant_type": weight.quant_type,
        "block_size": weight.block_size,
        "double_quant": weight.double_quantized,
    }


def from_metadata(shape: tuple[int, ...], metadata: Mapping[str, Any]) -> QuantizedTensor:
    return tensor.abstract(shape, **metadata)


def weight_of(name: str) -> str | None:
    """Cuts off what follows the weight's own name, as in NAME.weight.absmax."""
    found = _PART.fullmatch(name)
    return found and found.group(1)
