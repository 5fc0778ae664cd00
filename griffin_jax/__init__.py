"""Griffin models (RecurrentGemma, Griffin, Hawk) in JAX."""

from griffin_jax.config import GriffinConfig, preset
from griffin_jax.inference import Chat, Sample, SamplingConfig
from griffin_jax.language_model import LanguageModel, load, quantize, save
from griffin_jax.quantization import QuantizationConfig

__all__ = [
    "Chat",
    "GriffinConfig",
    "LanguageModel",
    "QuantizationConfig",
    "Sample",
    "SamplingConfig",
    "load",
    "preset",
    "quantize",
    "save",
]
