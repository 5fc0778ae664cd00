"""8-bit products by every kernel, against the dequantized weight in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels import int8_matmul_pallas_tpu, rows_cpu
from griffin_jax.kernels.int8_matmul import int8_matmul
from griffin_jax.layer_of import LayerOf
from griffin_jax.models.linear import matmul, matmuls
from griffin_jax.models.lora_weight import LoRAWeight
from griffin_jax.quantization import int8

ON_CPU = jax.default_backend() == "cpu"
needs_cpu = pytest.mark.skipif(not ON_CPU, reason="the kernel is a CPU's")


@functools.cache
def weight(out, width, seed=0):
    values = np.random.default_rng(seed).standard_normal((out, width)).astype(np.float32)
    # Scales of many magnitudes, and one row of zeros.
    values *= 2.0 ** np.arange(-8, 8)[np.arange(out) % 16, None]
    values[3] = 0
    return int8.pack(values)


def inputs(batch, width, dtype="float32"):
    x = np.random.default_rng(1).standard_normal((*batch, width), np.float32)
    return jnp.asarray(x, dtype)


def pallas_tpu(x, weight):
    return int8_matmul_pallas_tpu.int8_matmul(x, weight, interpret=True)


def by(kernel):
    """The product by a kernel; the TPU's is interpreted."""
    if kernel == "pallas_tpu":
        return pallas_tpu
    return lambda x, weight: int8_matmul(x, [weight], kernel=kernel)[0]


def check(y, x, weight):
    """One rounding of the result, and none of the weight, whatever the dtype of x is."""
    exact = np.asarray(x, np.float64) @ np.asarray(weight.dequantize(), np.float64).T
    assert y.dtype == x.dtype and y.shape == exact.shape
    epsilon = float(jnp.finfo(x.dtype).eps) / 2
    sums = np.abs(np.asarray(x, np.float64)) @ np.abs(np.asarray(weight.dequantize(), np.float64)).T
    error = np.abs(np.asarray(y, np.float64) - exact)
    np.testing.assert_array_less(error, 1.01 * epsilon * np.abs(exact) + 1e-6 * sums + 1e-30)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
@pytest.mark.parametrize("kernel", ["reference", pytest.param("rows_cpu", marks=needs_cpu)])
def test_products_round_the_result_alone(kernel, batch, dtype):
    x, packed = inputs(batch, 100, dtype), weight(192, 100)
    check(by(kernel)(x, packed), x, packed)


@needs_cpu
@pytest.mark.parametrize("batch", [(1,), (5,)])
def test_rows_are_converted_in_turns_of_few_or_of_many(batch):
    x, packed = inputs(batch, 64, "bfloat16"), weight(512, 64)
    check(by("rows_cpu")(x, packed), x, packed)


@pytest.mark.parametrize(
    "rows, shape",
    [
        (1, (128, 128)),  # the shortest
        (17, (384, 1536)),  # rows and tiles left over
        (3, (128, 4096)),  # several tiles of inputs
        (530, (128, 256)),  # more rows than a tile
    ],
)
def test_the_kernel_of_the_tpu_rounds_the_result_alone(rows, shape):
    x, packed = inputs((rows,), shape[1], "bfloat16"), weight(*shape)
    assert int8_matmul_pallas_tpu.unsupported_reason(x, packed) is None
    check(pallas_tpu(x, packed), x, packed)


@pytest.mark.parametrize(
    "kernel", ["reference", "pallas_tpu", pytest.param("rows_cpu", marks=needs_cpu)]
)
def test_a_layer_of_a_stack_multiplies_as_the_layer_alone(kernel):
    layers = [weight(128, 128, seed) for seed in range(3)]
    stack = jax.tree.map(lambda *parts: jnp.stack(parts), *layers)
    x = inputs((2, 1), 128, "bfloat16")
    for i, layer in enumerate(layers):
        found = by(kernel)(x, LayerOf(stack, jnp.int32(i)))
        np.testing.assert_array_equal(found, by(kernel)(x, layer))


@pytest.mark.parametrize(
    "kernel", ["reference", "pallas_tpu", pytest.param("rows_cpu", marks=needs_cpu)]
)
def test_gradients_reach_the_activations(kernel):
    x, packed = inputs((3,), 128, "bfloat16"), weight(256, 128)
    _, pull = jax.vjp(lambda x: by(kernel)(x, packed), x)
    dy = inputs((3,), 256, "bfloat16")
    exact = np.asarray(dy, np.float64) @ np.asarray(packed.dequantize(), np.float64)
    (dx,) = pull(dy)
    assert dx.dtype == x.dtype
    np.testing.assert_allclose(
        np.asarray(dx, np.float64), exact, rtol=0, atol=2**-7 * np.abs(exact).max()
    )


def test_linear_layers_multiply_by_them_alone_and_under_an_adapter():
    x, packed = inputs((2, 3), 128), weight(64, 128)
    low = LoRAWeight(packed, jnp.ones((2, 128)), jnp.ones((64, 2)), 0.5)
    plain = matmul(x, packed)
    check(plain, x, packed)
    pair = matmuls(x, [packed, low], [None, None])
    np.testing.assert_array_equal(pair[0], plain)
    exact = np.asarray(x, np.float64) @ np.asarray(low.dequantize(), np.float64).T
    np.testing.assert_allclose(pair[1], exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())

    def loss(a):
        return (matmul(x, low.replace(a=a)) ** 2).sum()

    assert float(jnp.abs(jax.grad(loss)(low.a)).max()) > 0


@pytest.mark.parametrize(
    "dtype, shape, reason",
    [
        (jnp.float32, (128, 512), "takes bfloat16, not float32"),
        (jnp.bfloat16, (96, 512), "96 x 512"),
        (jnp.bfloat16, (128, 520), "128 x 520"),
    ],
)
def test_the_kernel_of_the_tpu_says_which_products_it_leaves_to_others(dtype, shape, reason):
    x = jax.ShapeDtypeStruct((1, shape[1]), dtype)
    assert reason in int8_matmul_pallas_tpu.unsupported_reason(x, int8.abstract(shape))


@needs_cpu
def test_forced_kernels_that_cannot_serve_say_why():
    assert rows_cpu.unsupported_reason(128) is None
    with pytest.raises(ValueError, match="'rows_cpu' cannot serve: 48 rows are not a multiple"):
        int8_matmul(inputs((1,), 128), [weight(48, 128)], kernel="rows_cpu")
    with pytest.raises(ValueError, match="'pallas_tpu' cannot serve: it needs a TPU"):
        int8_matmul(inputs((1,), 128), [weight(64, 128)], kernel="pallas_tpu")
