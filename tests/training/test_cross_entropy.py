"""The loss and its hand-written gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from griffin_jax.training.cross_entropy import cross_entropy


def plain(logits, targets, soft_cap):
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return losses, jax.nn.logsumexp(logits, axis=-1)


@pytest.mark.parametrize("soft_cap", [None, 3.0, 30.0])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_values_and_gradients_equal_those_of_the_definition(soft_cap, scale):
    generator = np.random.default_rng(0)
    logits = scale * generator.standard_normal((2, 5, 11)).astype(np.float32)
    targets = generator.integers(0, 11, (2, 5)).astype(np.int32)
    weights = [generator.standard_normal((2, 5)).astype(np.float32) for _ in range(2)]

    def run(function):
        outputs, pullback = jax.vjp(lambda x: function(x, targets, soft_cap), logits)
        return (*outputs, *pullback(tuple(weights)))

    for got, wanted in zip(run(cross_entropy), run(plain), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)
