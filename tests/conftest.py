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


def pytest_runtest_setup(item):
    """Skips `parity` tests where an oracle is missing; under GRIFFIN_PARITY=1 they must run.

    In the other tests, a shape mistake that broadcasting would hide is an error. The oracles' own
    code broadcasts that way.
    """
    parity = item.get_closest_marker("parity") is not None
    jax.config.update("jax_numpy_rank_promotion", "allow" if parity else "raise")
    missing = [name for name in ORACLES if importlib.util.find_spec(name) is None]
    if not (parity and missing):
        return
    message = f"the [parity] extra is not installed: no {', '.join(missing)}"
    if os.environ.get("GRIFFIN_PARITY") == "1":
        pytest.fail(message)
    pytest.skip(message)
