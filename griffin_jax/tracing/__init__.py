"""A look inside of a model: named places, patches, and the recurrence as attention.

`LanguageModel.trace` returns what is computed at places by name, and puts something else there.
"""

from griffin_jax.tracing.trace import Trace, place_names

__all__ = ["Trace", "place_names"]
