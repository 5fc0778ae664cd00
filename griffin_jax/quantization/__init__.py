"""4-bit weights as bitsandbytes makes them: NF4 and FP4, single or double quantized."""

from griffin_jax.quantization.config import QuantizationConfig
from griffin_jax.quantization.tensor import QuantizedTensor, abstract, dequantize, quantize

__all__ = [
    "QuantizationConfig",
    "QuantizedTensor",
    "abstract",
    "dequantize",
    "quantize",
]
