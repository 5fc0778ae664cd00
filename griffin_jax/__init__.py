"""Griffin models (RecurrentGemma, Griffin, Hawk) in JAX."""

from griffin_jax import versions

versions.check()  # Before what would fail under a JAX that is too old.

from griffin_jax.compilation_cache import enable_compilation_cache
from griffin_jax.config import GriffinConfig, preset
from griffin_jax.inference import Chat, Sample, SamplingConfig
from griffin_jax.language_model import LanguageModel
from griffin_jax.loading import dequantize, load, quantize, save
from griffin_jax.models import Griffin, State, init_state
from griffin_jax.quantization import QuantizationConfig
from griffin_jax.sharding import make_mesh
from griffin_jax.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "Chat",
    "Griffin",
    "GriffinConfig",
    "LanguageModel",
    "QuantizationConfig",
    "Sample",
    "SamplingConfig",
    "State",
    "Tokenizer",
    "__version__",
    "dequantize",
    "enable_compilation_cache",
    "init_state",
    "load",
    "make_mesh",
    "preset",
    "quantize",
    "save",
]
