"""Packed weights as bitsandbytes makes them: NF4 and FP4, single or double quantized."""

from griffin_jax.quantization.config import PACKINGS, QuantizationConfig
from griffin_jax.quantization.formats import FORMATS
from griffin_jax.quantization.tensor import QuantizedTensor, abstract, dequantize, quantize

__all__ = [
    "FORMATS",
    "PACKINGS",
    "QuantizationConfig",
    "QuantizedTensor",
    "abstract",
    "dequantize",
    "quantize",
]
