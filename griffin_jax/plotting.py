"""Matplotlib, which draws into files: an extra, imported where something is drawn."""

from typing import Any


def pyplot() -> Any:
    """Returns matplotlib's pyplot, which opens no window.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError('plots need matplotlib: pip install "griffin_jax[bench]"') from None
    plt.switch_backend("Agg")
    return plt
