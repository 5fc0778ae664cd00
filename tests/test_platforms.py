"""Nothing stands on what only some systems, or some versions of JAX, have; each is taken away here."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import command
from griffin_jax import host
from griffin_jax.benchmarks import memory
from griffin_jax.benchmarks.results import line
from griffin_jax.kernels import choice, dense_matmul, triton
from griffin_jax.kernels.linear_recurrence import linear_recurrence, linear_recurrence_reference
from griffin_jax.kernels.packed_matmul import packed_matmul
from griffin_jax.kernels.rg_lru import rg_lru
from griffin_jax.models import residual_step
from griffin_jax.quantization import dequantize, quantize
from griffin_jax.training.encoding import available_cores
from tests import hiding

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_package_imports_and_runs_where_all_of_it_is_missing():
    done = subprocess.run(
        [sys.executable, "-W", "error:::griffin_jax", "-m", "tests.hidden"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture
def without_triton(monkeypatch):
    hiding.hide_module(monkeypatch.setitem, hiding.TRITON)
    triton.missing.cache_clear()
    yield
    triton.missing.cache_clear()


@pytest.fixture
def served(monkeypatch, capsys):
    """What serves each operation of a program for a GPU, by operation."""
    monkeypatch.setattr(choice, "verbose", True)
    monkeypatch.setattr(choice, "platform", lambda: "gpu")
    choice._announce.cache_clear()

    def read():
        lines = capsys.readouterr().err.splitlines()
        return {text[1:].partition(":")[0]: text.split("'")[1] for text in lines}

    return read


def test_without_triton_a_gpu_is_served_by_the_next_kernels(without_triton, served):
    weight = quantize(np.random.default_rng(0).standard_normal((64, 256), np.float32))
    x = jnp.ones((2, 64, 128))
    rows = jnp.zeros(2, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(64), (2, 64))
    jax.eval_shape(lambda x: packed_matmul(x, [weight]), jnp.ones((1, 256), jnp.bfloat16))
    jax.eval_shape(linear_recurrence, x, x, x[:, 0])
    jax.eval_shape(rg_lru, x, x, x, x[0, 0], x[:, 0], positions, rows + 64)
    found = served()
    assert set(found) >= {"packed_matmul", "linear_recurrence", "rg_lru"}
    assert "pallas_gpu" not in found.values()
    assert residual_step.unsupported_reason(None, None, "", {}, x, None) == triton.missing()


def test_the_kernels_that_come_next_give_what_triton_would(without_triton):
    weight = quantize(np.random.default_rng(0).standard_normal((64, 256), np.float32))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 256)), jnp.float32)
    (y,) = packed_matmul(x, [weight], kernel="reference")
    np.testing.assert_allclose(y, x @ dequantize(weight).T, rtol=1e-4, atol=1e-4)
    a = jnp.full((2, 9, 4), 0.5)
    h = linear_recurrence(a, a, a[:, 0], kernel="associative")
    np.testing.assert_allclose(h, linear_recurrence_reference(a, a, a[:, 0]), rtol=1e-6)


@pytest.mark.parametrize("kernel", ["pallas_gpu"])
def test_a_kernel_of_triton_that_is_asked_for_says_that_jax_lost_it(without_triton, served, kernel):
    x = jnp.ones((2, 64, 128))
    with pytest.raises(ValueError, match="this JAX has no Triton backend of Pallas"):
        linear_recurrence(x, x, x[:, 0], kernel=kernel)


def test_without_proc_nothing_is_told_of_the_processor_and_the_memory(monkeypatch):
    hiding.hide_files(monkeypatch.setattr, "/proc", "/sys/fs")
    assert dense_matmul.has_bfloat16.__wrapped__() is False
    assert host.available_memory() is None
    assert host.processor()
    assert command.machine()


def test_without_forking_and_without_a_count_of_cores_there_is_one_that_counts(monkeypatch):
    hiding.hide_forking(monkeypatch.setattr, monkeypatch.delattr)
    hiding.hide_affinity(monkeypatch.setattr, monkeypatch.delattr)
    assert not hasattr(os, "fork")
    with pytest.raises(ValueError, match="fork"):
        multiprocessing.get_context("fork")
    assert available_cores() == os.cpu_count()


def test_where_the_system_does_not_tell_it_the_peak_of_memory_is_unknown(monkeypatch):
    monkeypatch.setattr(memory, "resource", None)
    assert memory.host_peak_bytes() is None
    row = {"what": "long prompt", "status": "ok", "model": "m", "tokens_read": 8}
    row |= {"tokens_per_second": 1.0, "state_bytes": 8, "peak_bytes": None}
    assert "peak unknown" in line(row)
