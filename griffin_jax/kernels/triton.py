"""Pallas's Triton backend, as far as this JAX has it, imported when it is first used.

Its names are this module's own: `triton.load` is `jax.experimental.pallas.triton.load`. JAX
deprecates the backend in 0.12 and is about to remove it. Without it the kernels that are written for
it do not serve, and those that come next in each operation's list do.
"""

import functools
import importlib
import importlib.util
from typing import Any

_BACKEND = "jax.experimental.pallas.triton"


@functools.cache
def missing() -> str | None:
    """Returns the reason why no kernel of this backend can run; None where JAX has the backend."""
    if importlib.util.find_spec(_BACKEND) is None:
        return "this JAX has no Triton backend of Pallas"
    return None


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_BACKEND), name)
