"""What every test runs under."""

import importlib.util
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

# A shape mistake that broadcasting would hide is an error.
jax.config.update("jax_numpy_rank_promotion", "raise")

ORACLES = ("torch", "transformers", "accelerate", "bitsandbytes", "recurrentgemma")


def pytest_runtest_setup(item):
    """Skips `parity` tests where an oracle is missing; under GRIFFIN_PARITY=1 they must run."""
    if item.get_closest_marker("parity") is None:
        return
    missing = [name for name in ORACLES if importlib.util.find_spec(name) is None]
    if not missing:
        return
    message = f"the [parity] extra is not installed: no {', '.join(missing)}"
    if os.environ.get("GRIFFIN_PARITY") == "1":
        pytest.fail(message)
    pytest.skip(message)
