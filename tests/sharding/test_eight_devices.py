"""The tests in eight_devices/, each file in a process of its own that has eight CPU devices."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What one device shows, eight show again.
FILES = [
    "models",
    "inference",
    "training",
    "benchmarks",
    "checkpoints",
    "evaluation",
    "tracing",
    "steps",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_on_eight_devices(name):
    flags = (
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true"
    )
    settings = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "PYTEST_ADDOPTS": "",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # what is compiled runs for a moment
    }
    file = f"tests/sharding/eight_devices/{name}.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-n0", "-p", "no:cacheprovider", file],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
