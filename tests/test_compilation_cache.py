"""Where commands keep compiled programs."""

import jax
import pytest

from griffin_jax.compilation_cache import enable_compilation_cache

OPTIONS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def restored_options():
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "griffin_jax" / "xla")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_a_folder_that_the_user_chose_is_left_alone(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"
