"""The versions of JAX that this package was tried with, checked before anything else is imported."""

import re
import warnings

OLDEST = "0.10.2"  # as in setup.py
TRIED = (OLDEST, "0.11.2", "0.12.0")


def check() -> None:
    """Meets a JAX that this package was not tried with, in one line.

    A JAX that is newer than all that were tried, or whose jaxlib is of another version, is a
    warning.

    Raises:
      ImportError: JAX is too old, or there is none that can be imported.
    """
    try:
        import jax
        import jaxlib
    except (ImportError, RuntimeError) as error:  # RuntimeError: it refuses its jaxlib
        reason = " ".join(str(error).split())
        raise ImportError(f"griffin_jax cannot import JAX ({reason}); {_advice()}") from error
    version, library = jax.__version__, jaxlib.__version__
    if _numbers(version) < _numbers(OLDEST):
        raise ImportError(f"jax {version} is too old for griffin_jax; {_advice()}")
    if _numbers(version)[:2] > _numbers(TRIED[-1])[:2]:
        _warn(f"jax {version} is newer than what griffin_jax was tried with; {_advice()}")
    if _numbers(version) != _numbers(library):
        _warn(f"jax {version} is beside jaxlib {library}; {_advice()}")


def _advice() -> str:
    tried = ", ".join(TRIED)
    return f'tried are jax and jaxlib {tried}: pip install -U "jax>={OLDEST}"'


def _numbers(version: str) -> tuple[int, ...]:
    """Returns (0, 12, 1) of "0.12.1.dev20261130"."""
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def _warn(text: str) -> None:
    # At the line that imports griffin_jax: above this function, `check` and griffin_jax/__init__.
    warnings.warn(text, RuntimeWarning, stacklevel=4)
