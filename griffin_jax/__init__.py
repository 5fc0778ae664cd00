"""Griffin models (RecurrentGemma, Griffin, Hawk) in JAX.

What is listed in `__all__` is imported where it is first used (PEP 562), and so are the package's
modules: `import griffin_jax` takes little longer than `import jax`, and who wants the tokenizer or a
command's flags alone does not wait for the models.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from griffin_jax import versions

if TYPE_CHECKING:
    from griffin_jax.compilation_cache import enable_compilation_cache
    from griffin_jax.config import GriffinConfig, preset
    from griffin_jax.inference import Chat, Sample, SamplingConfig
    from griffin_jax.language_model import LanguageModel
    from griffin_jax.loading import dequantize, load, quantize, save
    from griffin_jax.models import Griffin, State, init_state
    from griffin_jax.quantization import QuantizationConfig
    from griffin_jax.sharding import make_mesh
    from griffin_jax.tokenizer import Tokenizer

versions.check()  # Before what would fail under a JAX that is too old.

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

# The module of each name above; for type checkers and readers of this file it is imported there.
_MODULES = {
    "Chat": "inference",
    "Griffin": "models",
    "GriffinConfig": "config",
    "LanguageModel": "language_model",
    "QuantizationConfig": "quantization",
    "Sample": "inference",
    "SamplingConfig": "inference",
    "State": "models",
    "Tokenizer": "tokenizer",
    "dequantize": "loading",
    "enable_compilation_cache": "compilation_cache",
    "init_state": "models",
    "load": "loading",
    "make_mesh": "sharding",
    "preset": "config",
    "quantize": "loading",
    "save": "loading",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(f"griffin_jax.{_MODULES[name]}"), name)
        globals()[name] = value  # found without this function from now on
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"griffin_jax.{name}") is not None:
        return importlib.import_module(f"griffin_jax.{name}")
    raise AttributeError(f"module 'griffin_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
