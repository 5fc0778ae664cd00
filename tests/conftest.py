"""What every test runs under."""

import importlib.util
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ.get("GRIFFIN_PARITY") != "1":
    # The plain run is mostly compilation of small programs that run once. The live comparisons
    # compile as users do.
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    )

import jax
import pytest

ORACLES = ("torch", "transformers", "accelerate", "bitsandbytes", "recurrentgemma")


def missing(names):
    return [name for name in names if importlib.util.find_spec(name) is None]


def pytest_configure(config):
    """Under GRIFFIN_PARITY=1 nothing may be left out for want of an oracle."""
    absent = missing((*ORACLES, "peft"))
    if os.environ.get("GRIFFIN_PARITY") == "1" and absent:
        raise pytest.UsageError(f"GRIFFIN_PARITY=1, but {', '.join(absent)} is not installed")


def pytest_runtest_setup(item):
    """Skips `parity` tests where an oracle is missing.

    In the other tests, a shape mistake that broadcasting would hide is an error. The oracles' own
    code broadcasts that way.
    """
    parity = item.get_closest_marker("parity") is not None
    jax.config.update("jax_numpy_rank_promotion", "allow" if parity else "raise")
    if parity and (absent := missing(ORACLES)):
        pytest.skip(f"the [parity] extra is not installed: no {', '.join(absent)}")
