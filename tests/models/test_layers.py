"""Numerics of the small layers, against plain NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.models.layers import Embedder, Linear, rms_norm


@pytest.mark.parametrize(("width", "factor"), [(2560, 50.5), (4096, 64.0), (48, 6.9375)])
def test_the_embedding_scale_is_the_root_of_the_width_rounded_to_bfloat16(width, factor):
    embedding = jnp.linspace(-1, 1, 2 * width).reshape(2, width)
    embedder = Embedder(vocab_size=2, width=width, scale=True)
    scaled = embedder.apply(
        {"params": {"embedding": embedding}}, np.array([[1, 0]]), method="encode"
    )
    np.testing.assert_array_equal(scaled[0], np.float32(factor) * embedding[::-1])


def test_the_embedding_is_left_alone_when_it_is_not_scaled():
    embedding = jnp.arange(12.0).reshape(3, 4)
    embedder = Embedder(vocab_size=3, width=4, scale=False)
    out = embedder.apply({"params": {"embedding": embedding}}, np.array([[2]]), method="encode")
    np.testing.assert_array_equal(out[0, 0], embedding[2])


def test_rms_norm_multiplies_by_one_plus_scale_and_adds_eps_under_the_root():
    x = np.array([[[1e-3, -1e-3, 1e-3, -1e-3]]], np.float32)  # mean square 1e-6, as eps
    scale = np.array([0.0, 1.0, -1.0, 0.5], np.float32)
    expected = np.array([1.0, -2.0, 0.0, -1.5]) / np.sqrt(2)
    np.testing.assert_allclose(rms_norm(x, scale, eps=1e-6)[0, 0], expected, rtol=1e-5)


def test_rms_norm_of_bfloat16_is_computed_in_float32():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, 64)), jnp.bfloat16)
    scale = jnp.full(64, 0.1, jnp.bfloat16)
    out = rms_norm(x, scale, eps=1e-6)
    exact = rms_norm(x.astype(jnp.float32), scale.astype(jnp.float32), eps=1e-6)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))


def test_a_linear_weight_is_stored_out_by_in():
    weight, bias = (
        np.arange(6.0, dtype=np.float32).reshape(2, 3),
        np.array([10.0, 20.0], np.float32),
    )
    x = np.array([[1.0, 2.0, 3.0]], np.float32)
    out = Linear(2).apply({"params": {"weight": weight, "bias": bias}}, x)
    np.testing.assert_array_equal(out, [[8 + 10, 26 + 20]])
