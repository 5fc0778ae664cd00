"""What is compiled here runs for a moment, so it is compiled quickly, and once for each shape."""

import os

import jax
import pytest

SETTINGS = {
    "jax_disable_most_optimizations": True,
    "jax_persistent_cache_min_compile_time_secs": 0.2,
}


@pytest.fixture(scope="package", autouse=True)
def quick_compilation(tmp_path_factory):
    settings = SETTINGS | {"jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs"))}
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
        # For the processes that tests start.
        os.environ[name.upper()] = str(value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
        del os.environ[name.upper()]
