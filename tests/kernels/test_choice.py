"""Which kernel serves: by platform and shape, said once where it is asked for."""

import jax
import pytest

from griffin_jax import devices
from griffin_jax.kernels import choice
from griffin_jax.sharding import make_mesh

SERVES = {"fast_tpu": None, "quick_cpu": "7 is odd", "neat": "no reason", "plain": None}


@pytest.fixture
def verbose(monkeypatch):
    monkeypatch.setattr(choice, "verbose", True)
    monkeypatch.setattr(choice, "platform", lambda: "cpu")
    choice._announce.cache_clear()


def test_the_first_kernel_that_serves_is_named_once_with_why_not_the_ones_before(verbose, capsys):
    for _ in range(2):
        assert choice.choose("product", SERVES) == "plain"
    assert capsys.readouterr().err == (
        "[product: kernel 'plain'; not 'quick_cpu': 7 is odd; not 'neat': no reason]\n"
    )


def test_nothing_is_said_where_nobody_asks(capsys):
    choice.choose("product", SERVES)
    assert capsys.readouterr().err == ""


def test_a_program_is_for_the_platform_of_the_mesh_that_is_set(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert devices.platform() == "tpu"
    assert choice.choose("product", SERVES) == "fast_tpu"
    with jax.set_mesh(make_mesh(devices=jax.devices("cpu")[:1])):
        assert devices.platform() == "cpu"
