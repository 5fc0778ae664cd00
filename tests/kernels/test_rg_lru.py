"""The RG-LRU against its equations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels.rg_lru import rg_lru, sqrt_bounded_gradient


def draw(time, seed=0):
    """x, gate_x, gate_a, a_param, hidden, positions, lengths of three rows of width 4."""
    generator = np.random.default_rng(seed)
    x, gate_x, gate_a = generator.standard_normal((3, 3, time, 4)).astype(np.float32)
    a_param = generator.uniform(-6, -2, 4).astype(np.float32)
    hidden = generator.standard_normal((3, 4)).astype(np.float32)
    positions = np.stack([np.arange(time), 5 + np.arange(time), 5 + np.arange(time)])
    positions[2, 4:] = np.arange(time - 4)
    return x, gate_x, gate_a, a_param, hidden, positions, np.array([time, 0, time - 3])


def equations(x, gate_x, gate_a, a_param, hidden, positions, lengths):
    """One scalar step after another."""

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    outputs, h = np.zeros(x.shape), hidden.astype(np.float64)
    for row, length in enumerate(lengths):
        for t in range(length):
            log_a = -8 * np.log1p(np.exp(a_param.astype(np.float64))) * sigmoid(gate_a[row, t])
            gated = sigmoid(gate_x[row, t].astype(np.float64)) * x[row, t]
            if positions[row, t] == 0:
                h[row] = gated
            else:
                h[row] = np.exp(log_a) * h[row] + np.sqrt(1 - np.exp(2 * log_a)) * gated
            outputs[row, t] = h[row]
    return outputs, h


def test_equals_the_equations_of_the_paper():
    arguments = draw(20)
    h, last = jax.jit(rg_lru)(*arguments)
    expected, expected_last = equations(*arguments)
    for row, length in enumerate(arguments[-1]):
        np.testing.assert_allclose(h[row, :length], expected[row, :length], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(last, expected_last, rtol=1e-4, atol=1e-6)


def test_the_recurrence_of_bfloat16_inputs_runs_in_float32():
    x, gate_x, gate_a, *rest = draw(20)
    half = [jnp.asarray(v, jnp.bfloat16) for v in (x, gate_x, gate_a)]
    h, last = jax.jit(rg_lru)(*half, *rest)
    exact, exact_last = jax.jit(rg_lru)(*(v.astype(jnp.float32) for v in half), *rest)
    assert (h.dtype, last.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(last, exact_last)
    np.testing.assert_array_equal(h, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("x", "slope"), [(4.0, 0.25), (1e-4, 50.0), (1e-12, 1000.0), (0.0, 1000.0)]
)
def test_the_slope_of_the_square_root_is_at_most_a_thousand(x, slope):
    value, gradient = jax.value_and_grad(sqrt_bounded_gradient)(jnp.float32(x))
    np.testing.assert_allclose(value, np.sqrt(x), rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5)
