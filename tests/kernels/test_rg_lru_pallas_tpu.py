"""The TPU's fused kernel, interpreted, equals the definition, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels import rg_lru_pallas_tpu as kernel
from griffin_jax.kernels.rg_lru import rg_lru_reference
from tests.kernels.test_rg_lru import NAMES, draw


@pytest.mark.parametrize(
    "time, width, dtype, tolerance",
    [
        pytest.param(8, 128, jnp.float32, 2e-6, marks=pytest.mark.slow),  # half a chunk
        pytest.param(48, 128, jnp.float32, 2e-6, marks=pytest.mark.slow),
        (85, 256, jnp.float32, 2e-6),  # tiles, and one left over
        # The backward pass reads the state back in bfloat16.
        pytest.param(64, 128, jnp.bfloat16, 5e-3, marks=pytest.mark.slow),
    ],
)
def test_equals_the_definition_with_gradients(monkeypatch, time, width, dtype, tolerance):
    monkeypatch.setattr(kernel, "_TILE", 32)
    arguments, positions, lengths = draw(time, dtype, width=width)
    # A reset within a chunk, at its border, twice in a row, and in the second tile.
    for place in (4, 15, 16, 17, 40):
        positions = positions.at[0, place:].set(jnp.arange(max(time - place, 0)))

    def run(function, **options):
        def call(*arguments):
            return function(*arguments, positions, lengths, **options)

        outputs, pullback = jax.vjp(call, *arguments)
        return (*outputs, *pullback(jax.tree.map(jnp.cos, outputs)))

    wanted = run(rg_lru_reference)
    got = run(kernel.rg_lru, interpret=True)
    for name, a, b in zip(NAMES, wanted, got, strict=True):
        assert a.dtype == b.dtype, name
        a, b = np.float64(a), np.float64(b)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(a), name


def test_padding_leaves_the_state_bit_for_bit():
    arguments, positions, _ = draw(20, jnp.float32, width=128)
    _, last = kernel.rg_lru(*arguments, positions, jnp.array([0, 20]), interpret=True)
    np.testing.assert_array_equal(last[0], arguments[-1][0])


def test_one_minus_exp_is_as_exact_as_float32():
    y = -np.logspace(-12, 2, 2000, dtype=np.float32)
    np.testing.assert_allclose(kernel._one_minus_exp(y), -np.expm1(np.float64(y)), rtol=2e-6)


@pytest.mark.parametrize(
    "shape, reason",
    [((1, 64, 100), "100 is not a multiple of"), ((1, 1, 128), "1 tokens are fewer than")],
)
def test_says_which_shapes_it_leaves_to_others(shape, reason):
    assert reason in kernel.unsupported_reason(shape)
