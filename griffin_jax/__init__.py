"""Griffin models (RecurrentGemma, Griffin, Hawk) in JAX."""

from griffin_jax import versions

versions.check()  # Before what would fail under a JAX that is too old.

from griffin_jax.compilation_cache import enable_compilation_cache
from griffin_jax.config import GriffinConfig, preset
from griffin_jax.inference import Chat, Sample, SamplingConfig
from griffin_jax.language_model import LanguageModel, dequantize, load, quantize, save
from griffin_jax.quantization import QuantizationConfig

__version__ = "0.1.0"

__all__ = [
    "Chat",
    "GriffinConfig",
    "LanguageModel",
    "QuantizationConfig",
    "Sample",
    "SamplingConfig",
    "__version__",
    "dequantize",
    "enable_compilation_cache",
    "load",
    "preset",
    "quantize",
    "save",
]
