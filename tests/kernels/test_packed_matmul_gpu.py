import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels import packed_matmul_pallas_gpu as gpu
from griffin_jax.kernels.packed_matmul import packed_matmul, packed_matmul_reference
from griffin_jax.quantization import quantize

ON_GPU = jax.default_backend() == "gpu"


def operands(rows, widths, width, dtype="float32", **options):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((rows, width), np.float32), dtype)
    weights = [
        quantize(random.standard_normal((out, width), np.float32), **options) for out in widths
    ]
    return x, weights


def check(x, weights, rtol=1e-5):
    expected = packed_matmul_reference(x.astype(jnp.float32), weights)
    reason = gpu.unsupported_reason(len(x), weights)
    assert reason is None, reason
    for y, wanted in zip(gpu.packed_matmul(x, tuple(weights), not ON_GPU), expected, strict=True):
        assert y.dtype == x.dtype
        scale = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(np.asarray(y, np.float32), wanted, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize(
    "rows", [1, 17, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 64))]
)
@pytest.mark.parametrize("quant_type", ["nf4", pytest.param("fp4", marks=pytest.mark.slow)])
@pytest.mark.parametrize("double_quant", [False, True])
def test_products_equal_the_reference(rows, quant_type, double_quant):
    check(*operands(rows, (32,), 512, quant_type=quant_type, double_quant=double_quant))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("block_size", [32, 128, 256])
def test_products_equal_the_reference_for_other_block_sizes(rows, block_size):
    check(*operands(rows, (32,), 768, block_size=block_size))


@pytest.mark.parametrize("rows", [1, 3])
def test_weights_of_several_widths_are_read_in_one_launch(rows):
    check(*operands(rows, (96, 32, 64), 256))


def test_rows_longer_than_a_tile_are_read_in_pieces():
    check(*operands(1, (32,), 4096 + 512 + 256))


@pytest.mark.parametrize("rows", [1, 5])
def test_bfloat16_inputs_are_added_up_in_float32(rows):
    check(*operands(rows, (32,), 512, "bfloat16"), rtol=2**-7)


@pytest.mark.parametrize("rows", [1, 3])
def test_gradients_with_respect_to_inputs_equal_the_reference(rows):
    x, weights = operands(rows, (32, 64), 256)

    def loss(product):
        return jax.grad(lambda x: sum((y**2).sum() for y in product(x, tuple(weights))))(x)

    expected = loss(packed_matmul_reference)
    found = loss(lambda x, weights: gpu.packed_matmul(x, weights, not ON_GPU))
    np.testing.assert_allclose(
        found, expected, rtol=1e-4, atol=1e-4 * float(jnp.abs(expected).max())
    )


@pytest.mark.parametrize(
    ("rows", "out", "width", "options", "reason"),
    [
        (65, 32, 256, {}, "65 rows of inputs are more than 64"),
        (1, 33, 256, {}, "33 x 256"),
        (1, 32, 192, {}, "32 x 192"),
        (1, 32, 4096, {"block_size": 1024}, "blocks of 1024"),
        (1, 32, 768, {"block_size": 512}, "blocks of 512"),
    ],
)
def test_a_shape_that_is_not_served_is_told(rows, out, width, options, reason):
    x, weights = operands(rows, (out,), width, **options)
    assert reason in gpu.unsupported_reason(len(x), weights)


@pytest.mark.skipif(ON_GPU, reason="this is a GPU")
def test_forced_elsewhere_the_kernel_refuses():
    x, weights = operands(1, (32,), 256)
    with pytest.raises(
        ValueError, match="packed_matmul: kernel 'pallas_gpu' cannot serve: it needs"
    ):
        packed_matmul(x, weights, kernel="pallas_gpu")
