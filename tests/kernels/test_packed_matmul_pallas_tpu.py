"""The TPU's kernel for 4-bit weights, interpreted, equals decoding and multiplying."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels import packed_matmul_pallas_tpu as kernel
from griffin_jax.kernels.packed_matmul import packed_matmul
from griffin_jax.layer_of import LayerOf
from griffin_jax.quantization import abstract, quantize
from griffin_jax.quantization.tensor import decode


@functools.cache
def weight(features, inputs, seed=0, double_quant=False, quant_type="nf4", block_size=64):
    values = np.random.default_rng(seed).standard_normal((features, inputs)).astype(np.float32)
    # Scales of many magnitudes, and one block of zeros.
    values *= 2.0 ** np.arange(-8, 8)[np.arange(features) % 16, None]
    values[3, :block_size] = 0
    return quantize(values, quant_type, block_size=block_size, double_quant=double_quant)


def inputs(rows, width):
    x = np.random.default_rng(rows).standard_normal((rows, width))
    return jnp.asarray(x, jnp.bfloat16)


def expected(x, tensor):
    """Returns the product with the weight rounded to bfloat16, in float64."""
    return np.float64(x) @ np.float64(decode(tensor, jnp.bfloat16)).T


def assert_equal_but_for_rounding(got, wanted):
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(got), wanted, rtol=2.0**-8, atol=1e-4 * abs(wanted).max())


@pytest.mark.parametrize(
    "rows, shape, options",
    [
        (1, (128, 128), {}),  # the shortest
        pytest.param(16, (256, 512), {}, marks=pytest.mark.slow),
        (17, (384, 1536), {}),  # rows and tiles left over
        pytest.param(5, (128, 512), {"double_quant": True}, marks=pytest.mark.slow),
        pytest.param(5, (256, 1024), {"quant_type": "fp4"}, marks=pytest.mark.slow),
        (3, (128, 1024), {"quant_type": "fp4", "double_quant": True, "block_size": 128}),
        pytest.param(3, (128, 4096), {"block_size": 4096}, marks=pytest.mark.slow),
        (530, (128, 256), {}),  # more rows than a tile
    ],
)
def test_equals_the_definition(rows, shape, options):
    tensor, x = weight(*shape, **options), inputs(rows, shape[1])
    assert kernel.unsupported_reason(x, tensor) is None
    got = kernel.packed_matmul(x, tensor, interpret=True)
    assert_equal_but_for_rounding(got, expected(x, tensor))


def test_every_code_and_every_input_is_decoded_to_the_bit():
    # The identity reads out the weight: each input alone, in every place of a group.
    tensor = weight(128, 512)
    got = kernel.packed_matmul(jnp.eye(512, dtype=jnp.bfloat16), tensor, interpret=True)
    np.testing.assert_array_equal(got, decode(tensor, jnp.bfloat16).T)
    assert len(np.unique(np.asarray(tensor.packed))) == 256


@pytest.mark.parametrize("double_quant", [False, True])
def test_a_layer_of_a_stack_equals_the_layer_alone(double_quant):
    layers = [weight(128, 512, seed, double_quant) for seed in range(3)]
    stack = jax.tree.map(lambda *parts: jnp.stack(parts), *layers)
    x = inputs(2, 512).reshape(2, 1, 512)
    for i, layer in enumerate(layers):
        got = kernel.packed_matmul(x, LayerOf(stack, jnp.int32(i)), interpret=True)
        np.testing.assert_array_equal(got, kernel.packed_matmul(x, layer, interpret=True))


def test_the_gradient_of_the_input_is_that_of_the_definition():
    tensor, x = weight(128, 256), inputs(3, 256)
    product, pullback = jax.vjp(lambda x: kernel.packed_matmul(x, tensor, interpret=True), x)
    gradient = inputs(3, 128)
    wanted = np.float64(gradient) @ np.float64(decode(tensor, jnp.bfloat16))
    assert product.shape == (3, 128)
    assert_equal_but_for_rounding(pullback(gradient)[0], wanted)


def test_the_layout_of_the_device_changes_no_value():
    tensor = weight(128, 512)
    stack = jax.tree.map(lambda *parts: jnp.stack(parts), tensor, weight(128, 512, 1))
    for given in (tensor, weight(128, 512, double_quant=True), stack):
        laid_out = kernel.to_device_layout(given)
        assert jax.tree.structure(laid_out) == jax.tree.structure(given)
        jax.tree.map(np.testing.assert_array_equal, laid_out, given)
        order = laid_out.packed.format.layout.major_to_minor
        assert order[-2:] == (given.packed.ndim - 1, given.packed.ndim - 2)
        np.testing.assert_array_equal(
            jax.jit(lambda t: t.packed + 1)(laid_out), np.asarray(given.packed) + 1
        )


@pytest.mark.parametrize(
    "dtype, shape, block_size, reason",
    [
        (jnp.float32, (128, 512), 64, "takes bfloat16, not float32"),
        (jnp.bfloat16, (128, 640), 64, "rows of 640"),
        (jnp.bfloat16, (96, 512), 64, "96 outputs"),
        (jnp.bfloat16, (128, 512), 32, "blocks of 32"),
        (jnp.bfloat16, (128, 512), 1024, "blocks of 1024"),
    ],
)
def test_says_which_products_it_leaves_to_others(dtype, shape, block_size, reason):
    x = jax.ShapeDtypeStruct((1, shape[1]), dtype)
    assert reason in kernel.unsupported_reason(
        x, abstract(shape, jnp.float32, block_size=block_size)
    )


def test_forced_where_there_is_no_tpu_it_is_refused():
    with pytest.raises(ValueError, match="'pallas_tpu' cannot serve: it needs a TPU"):
        packed_matmul(inputs(1, 512), [weight(128, 512)], kernel="pallas_tpu")
