import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.models.linear import matmul
from griffin_jax.quantization import dequantize, quantize


def operands(shape, batch, dtype="float32"):
    random = np.random.default_rng(0)
    weight = random.standard_normal(shape, np.float32)
    return jnp.asarray(random.standard_normal((*batch, shape[1]), np.float32), dtype), weight


@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize("shape", [(192, 128), (70, 128), (7, 100)])
@pytest.mark.parametrize("double_quant", [False, True])
def test_a_4_bit_weight_multiplies_like_its_dequantized_values(shape, batch, double_quant):
    x, weight = operands(shape, batch)
    tensor = quantize(weight, double_quant=double_quant)
    product = matmul(x, tensor)
    expected = np.asarray(x, np.float64) @ np.asarray(dequantize(tensor), np.float64).T
    assert product.dtype == jnp.float32
    np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("quantized", [False, True])
def test_bfloat16_products_are_added_up_in_float32(quantized):
    x, weight = operands((64, 1024), (4,), "bfloat16")
    weight = np.abs(weight)
    x = jnp.abs(x)
    stored = quantize(weight) if quantized else weight
    values = np.asarray(dequantize(stored) if quantized else weight, np.float64)
    product = matmul(x, stored)
    assert product.dtype == jnp.bfloat16
    expected = np.asarray(x, np.float64) @ values.T
    # One rounding of the result, and one of each weight, whose errors average out.
    np.testing.assert_allclose(np.asarray(product, np.float64), expected, rtol=2**-8)


def test_gradients_reach_the_activations_through_a_4_bit_weight():
    x, weight = operands((128, 128), (3,))
    tensor = quantize(weight)
    gradient = jax.grad(lambda x: (matmul(x, tensor) ** 2).sum())(x)
    dense = jax.grad(lambda x: (matmul(x, dequantize(tensor)) ** 2).sum())(x)
    np.testing.assert_allclose(gradient, dense, rtol=1e-4, atol=1e-3)
