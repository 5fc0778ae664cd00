"""Griffin models (RecurrentGemma, Griffin, Hawk) in JAX."""

from griffin_jax.config import GriffinConfig, preset
from griffin_jax.inference import Chat, Sample, SamplingConfig
from griffin_jax.language_model import LanguageModel, load, save

__all__ = [
    "Chat",
    "GriffinConfig",
    "LanguageModel",
    "Sample",
    "SamplingConfig",
    "load",
    "preset",
    "save",
]
