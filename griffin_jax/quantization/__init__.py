"""Packed weights as bitsandbytes makes them: NF4 and FP4, single or double quantized, and 8 bits."""

from griffin_jax.quantization.config import PACKINGS, QuantizationConfig
from griffin_jax.quantization.formats import FORMATS
from griffin_jax.quantization.int8 import Int8Weight
from griffin_jax.quantization.tensor import QuantizedTensor, abstract, dequantize, quantize

__all__ = [
    "FORMATS",
    "PACKINGS",
    "Int8Weight",
    "QuantizationConfig",
    "QuantizedTensor",
    "abstract",
    "dequantize",
    "quantize",
]
