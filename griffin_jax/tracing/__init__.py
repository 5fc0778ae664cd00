"""A look inside of a model: named places, patches, and the recurrence as attention.

`LanguageModel.trace` returns what is computed at places by name, and puts something else there.
"""

from griffin_jax.tracing.gradients import gradients
from griffin_jax.tracing.recurrence import (
    decay_spectrum,
    effective_attention,
    head_attention,
    kept,
    memory_length,
    share_of_state,
)
from griffin_jax.tracing.trace import Trace, place_names

__all__ = [
    "Trace",
    "decay_spectrum",
    "effective_attention",
    "gradients",
    "head_attention",
    "kept",
    "memory_length",
    "place_names",
    "share_of_state",
]
