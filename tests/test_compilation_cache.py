"""Where commands keep compiled programs."""

import pwd

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


@pytest.mark.parametrize(
    ("named", "folder"),
    [
        ("elsewhere", "{work}/elsewhere"),
        ("~/kept", "{home}/kept"),
        ("gs://bucket/kept", "gs://bucket/kept"),
    ],
)
def test_a_folder_that_the_user_chose_is_taken(monkeypatch, tmp_path, named, folder):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", named)
    enable_compilation_cache()
    expected = folder.format(work=tmp_path / "work", home=tmp_path / "home")
    assert jax.config.jax_compilation_cache_dir == expected
    assert not list((tmp_path / "work").glob("~*"))


@pytest.mark.parametrize("home", [None, "", "/dev/null"])
def test_without_a_home_to_write_into_there_is_no_cache(monkeypatch, home):
    def nobody(uid):
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    before = jax.config.jax_compilation_cache_dir
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before
