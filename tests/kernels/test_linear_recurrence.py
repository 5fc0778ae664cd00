"""Every kernel equals one step after another, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels import linear_recurrence as kernels
from griffin_jax.kernels.linear_recurrence import linear_recurrence, linear_recurrence_reference

# One step, one block of 256 or a step less or more, and a remainder.
LENGTHS = [1, 2, 255, 256, 257, 700]
ON_CPU = pytest.mark.skipif(jax.default_backend() != "cpu", reason="this kernel needs a CPU")


def draw(time, seed=0):
    """x, a, h0 with some resets (a = 0) and some steps of padding (a = 1, x = 0)."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((2, time, 3)).astype(np.float32)
    a = generator.uniform(0.8, 0.999, x.shape).astype(np.float32)
    a[:, time // 3 :: 101] = 0
    x[:, time // 2 :: 97], a[:, time // 2 :: 97] = 0, 1
    return x, a, generator.standard_normal((2, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "kernel, time, platform",
    [
        *(("associative", time, "tpu") for time in LENGTHS),
        ("associative", 600, "gpu"),  # a shape of its own: traces are kept
        pytest.param("reference", 1, "cpu", marks=ON_CPU),
        pytest.param("reference", 37, "cpu", marks=ON_CPU),
    ],
)
def test_equals_one_step_after_another_with_gradients(kernel, time, platform, monkeypatch):
    monkeypatch.setattr(kernels, "platform", lambda: platform)  # for the size of blocks
    arguments = draw(time)
    weights = np.random.default_rng(1).standard_normal((2, time, 3)).astype(np.float32)

    def value_and_gradients(function):
        def loss(*arguments):
            h = function(*arguments)
            return jnp.sum(h * weights), h

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arguments)

    (_, h), gradients = value_and_gradients(functools.partial(linear_recurrence, kernel=kernel))
    (_, expected), expected_gradients = value_and_gradients(linear_recurrence_reference)
    for got, wanted in zip((h, *gradients), (expected, *expected_gradients), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=1e-5)


def test_one_scan_covers_all_of_time_but_on_a_tpu_or_where_it_takes_too_much_memory(monkeypatch):
    def scans_in_blocks():
        text = str(jax.make_jaxpr(lambda *arguments: kernels._associative(*arguments))(*draw(700)))
        return "scan[" in text

    monkeypatch.setattr(kernels, "platform", lambda: "tpu")
    assert scans_in_blocks()
    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    assert not scans_in_blocks()
    monkeypatch.setattr(kernels, "_LARGEST_WHOLE", 2 * 700 * 3 - 1)
    assert scans_in_blocks()


def test_a_zero_decay_forgets_everything_before_exactly(monkeypatch):
    monkeypatch.setattr(kernels, "platform", lambda: "tpu")
    x, a, h0 = draw(300)
    a[:, 280] = 0
    linear_recurrence = functools.partial(kernels.linear_recurrence, kernel="associative")
    h = jax.jit(linear_recurrence)(x, a, h0)
    other = jax.jit(linear_recurrence)(np.where(np.arange(300)[None, :, None] < 280, 7, x), a, -h0)
    np.testing.assert_array_equal(h[:, 280], x[:, 280])
    np.testing.assert_array_equal(h[:, 280:], other[:, 280:])
