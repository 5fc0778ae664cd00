"""What XLA is asked for on a GPU, and nowhere else."""

import jax
import numpy as np
import pytest

from griffin_jax.sharding import jit_on_mesh, make_mesh, mesh_function

REFUSED = {"xla_gpu_enable_command_buffer": "NO_SUCH_COMMAND"}


def double(gpu_options):
    return jit_on_mesh(lambda x: 2 * x, gpu_options=gpu_options)


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(mesh_function, "platform", lambda: "gpu")


def test_options_for_a_gpu_reach_the_compiler_there(on_a_gpu):
    with pytest.raises(jax.errors.JaxRuntimeError, match="NO_SUCH_COMMAND"):
        double(REFUSED)(np.float32(1))
    with pytest.raises(jax.errors.JaxRuntimeError, match="NO_SUCH_COMMAND"):
        double(REFUSED).on(None, np.float32(1))
    with pytest.raises(jax.errors.JaxRuntimeError, match="NO_SUCH_COMMAND"):
        double(REFUSED).lower(np.float32(1)).compile()


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_elsewhere_nobody_asks_for_them(platform, monkeypatch):
    monkeypatch.setattr(mesh_function, "platform", lambda: platform)
    assert double(REFUSED)(np.float32(1)) == 2
    assert double(REFUSED).lower(np.float32(1)).compile()(np.float32(1)) == 2


def test_what_xla_flags_say_comes_before_them(on_a_gpu, monkeypatch):
    jax.devices()  # XLA has read its flags
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=0 --xla_gpu_enable_command_buffer=")
    assert double(REFUSED)(np.float32(1)) == 2
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        double(REFUSED | {"no_such_option": "1"})(np.float32(1))


def test_the_mesh_says_what_is_compiled_for(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    mesh = make_mesh(devices=jax.devices("cpu")[:1])
    assert double(REFUSED).on(mesh, np.float32(1)) == 2
