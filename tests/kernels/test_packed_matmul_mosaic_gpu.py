import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels import packed_matmul_mosaic_gpu as mosaic
from griffin_jax.kernels.mosaic_gpu import backend, plan
from griffin_jax.kernels.packed_matmul import packed_matmul, packed_matmul_reference
from griffin_jax.quantization import dequantize, quantize
from tests.kernels.mosaic import ON_HOPPER, compiled_for_h200, interpreter, no_races


def operands(rows, widths, width, dtype="bfloat16", **options):
    random = np.random.default_rng(rows)
    x = jnp.asarray(random.standard_normal((rows, width), np.float32), dtype)
    weights = [
        quantize(0.02 * random.standard_normal((out, width), np.float32), **options)
        for out in widths
    ]
    return x, tuple(weights)


def check(x, weights):
    """Against float64, to what rounding to float16 and the result to x's dtype leaves."""
    assert mosaic.fits(weights) is None
    with no_races():
        products = mosaic.packed_matmul(x, weights, interpreter())
    for y, weight in zip(products, weights, strict=True):
        assert y.dtype == x.dtype
        assert y.shape == (*x.shape[:-1], weight.shape[0])
        values = np.asarray(dequantize(weight, jnp.float32), np.float64)
        wanted = np.asarray(x.astype(jnp.float32), np.float64) @ values.T
        error = np.linalg.norm(np.asarray(y.astype(jnp.float32), np.float64) - wanted)
        assert error < {"bfloat16": 2.2e-3, "float16": 6e-4}[x.dtype.name] * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    ("rows", "widths", "width", "options"),
    [
        (1, (64,), 256, {}),
        pytest.param(
            8, (64,), 256, {"quant_type": "fp4", "block_size": 32}, marks=pytest.mark.slow
        ),
        pytest.param(13, (64, 64), 512, {"double_quant": True}, marks=pytest.mark.slow),
        (33, (64,), 256, {"block_size": 128, "double_quant": True, "quant_type": "fp4"}),
        pytest.param(150, (64,), 256, {}, marks=pytest.mark.slow),
    ],
)
def test_products_equal_the_definition(rows, widths, width, options):
    check(*operands(rows, widths, width, **options))


def test_products_of_many_rows_decode_first(monkeypatch):
    monkeypatch.setattr(backend, "missing", lambda: None)
    _, weights = operands(1, (64,), 256)
    for rows in (mosaic._ROWS_DECODED - 1, mosaic._ROWS_DECODED):
        x = jax.ShapeDtypeStruct((1, rows, 256), jnp.bfloat16)
        many = rows == mosaic._ROWS_DECODED
        assert bool(mosaic.decoded_first(x)) == many
        assert bool(mosaic.decoded_unsupported(x, weights)) != many
    assert "not float32" in mosaic.decoded_unsupported(x.update(dtype=jnp.float32), weights)


def test_weights_decoded_first_give_the_definition_and_are_not_kept_for_the_gradient():
    x, weights = operands(3, (64, 128), 256, double_quant=True)
    found, backward = jax.vjp(mosaic.decoded_matmul, x, weights)
    for y, wanted in zip(found, packed_matmul_reference(x, weights), strict=True):
        assert np.array_equal(y, wanted)
    kept = sum(array.nbytes for array in jax.tree.leaves(backward))
    assert kept <= sum(array.nbytes for array in jax.tree.leaves(weights))
    [wanted] = jax.vjp(lambda x: packed_matmul_reference(x, weights), x)[1](found)
    dx, wanted = (np.asarray(g, np.float32) for g in (backward(found)[0], wanted))
    assert np.linalg.norm(dx - wanted) < 1e-2 * np.linalg.norm(wanted)


def test_rows_have_leading_axes():
    x, weights = operands(6, (64,), 256)
    check(x.reshape(2, 3, 256), weights)


# Three warpgroups at most: of more the interpreter runs too few at once on two cores, and waits.
@pytest.mark.slow
@pytest.mark.parametrize("share", [(2, 1, 1, 2), (1, 2, 2, 1)])
def test_however_a_product_is_shared_out_it_is_the_same(share, monkeypatch):
    tiles, parts, split, stages = share
    made = plan.Plan(8, tiles, parts, split, stages, 4, ahead=False)
    monkeypatch.setattr(mosaic, "plan", lambda *_: made)
    check(*operands(8, (128,), 1024))


def test_large_and_small_numbers_keep_their_precision():
    x, (weight,) = operands(4, (64,), 256, "float16")
    check(x * 4096, (weight.replace(absmax=weight.absmax * 2.0**-9),))
    check(x / 256, (weight.replace(absmax=weight.absmax * 2.0**14),))


@pytest.mark.slow
def test_gradients_with_respect_to_inputs_equal_the_definition():
    x, weights = operands(3, (64, 128), 256)

    def gradient(product):
        return jax.grad(lambda x: sum((y.astype(jnp.float32) ** 2).sum() for y in product(x)))(x)

    found = gradient(lambda x: mosaic.packed_matmul(x, weights, interpreter()))
    wanted = gradient(lambda x: packed_matmul_reference(x, weights))
    found, wanted = (np.asarray(g, np.float32) for g in (found, wanted))
    assert np.linalg.norm(found - wanted) < 1e-2 * np.linalg.norm(wanted)


@pytest.mark.parametrize("rows", [1, 4, 16, 32, 64, 128, 256, 1024])
@pytest.mark.parametrize(
    ("widths", "width"),
    [((12288, 12288), 4096), ((4096,), 12288), ((4096, 256, 256), 4096), ((2560,), 7680)],
)
def test_plans_fit_the_chip(rows, widths, width):
    padded = plan.padded_rows(rows)
    found = plan.plan(padded, widths, width, 4)
    assert padded % found.columns == 0
    assert all(out % (plan.TILE * found.tiles) == 0 for out in widths)
    assert width % (plan.PIECE * found.parts * found.split) == 0
    staged = plan.stage_bytes(found.columns, found.tiles, found.parts, found.scales) * found.stages
    shared = staged + plan.sum_bytes(found.columns, found.tiles, found.parts) + 32768
    assert shared + 1024 <= 232448
    assert 1 <= found.stages <= width // (plan.PIECE * found.parts * found.split)
    assert found.consumers <= 4


@pytest.mark.parametrize(
    ("widths", "width", "options", "reason"),
    [
        ((96,), 256, {}, r"weights of 96 x 256 \(needs multiples of 64 x 256\)"),
        ((64,), 320, {}, "weights of 64 x 320"),
        ((64,), 256, {"block_size": 512}, "bytes are not in rows"),
    ],
)
def test_weights_that_are_not_served_are_told(widths, width, options, reason):
    _, weights = operands(1, widths, width, **options)
    assert re.search(reason, mosaic.fits(weights))


def test_weights_of_several_kinds_are_not_served_together():
    _, (one,) = operands(1, (64,), 256)
    _, (other,) = operands(1, (64,), 256, quant_type="fp4")
    assert "several types" in mosaic.fits([one, other])


def test_float32_is_not_served(monkeypatch):
    monkeypatch.setattr(backend, "missing", lambda: None)
    x, weights = operands(1, (64,), 256, "float32")
    assert mosaic.unsupported_reason(x, weights) == "it computes in float16, not float32"


def test_without_the_backend_the_kernel_does_not_serve(monkeypatch):
    monkeypatch.setattr(backend, "_is_there", lambda: False)
    x, weights = operands(1, (64,), 256)
    assert mosaic.unsupported_reason(x, weights) == "this JAX has no Mosaic GPU backend of Pallas"


@pytest.mark.parametrize(
    ("kind", "serves"),
    [
        ("NVIDIA H200", True),
        ("NVIDIA H100 80GB HBM3", True),
        ("NVIDIA GH200 480GB", True),
        ("NVIDIA A100-SXM4-80GB", False),
        ("NVIDIA B200", False),
    ],
)
def test_hopper_alone_has_these_tensor_cores(kind, serves, monkeypatch):
    class Device:
        device_kind = kind

    class Mesh:
        abstract_device = Device

    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: Mesh)
    assert backend.missing() == (None if serves else f"it needs a Hopper GPU, and this is {kind}")


@pytest.mark.skipif(ON_HOPPER, reason="this is a Hopper GPU")
def test_forced_elsewhere_the_kernel_refuses():
    x, weights = operands(1, (64,), 256)
    with pytest.raises(ValueError, match="kernel 'mosaic_gpu' cannot serve: it needs a"):
        packed_matmul(x, weights, kernel="mosaic_gpu")


@pytest.mark.parametrize(("rows", "out", "width"), [(16, 128, 12288), (8, 64, 256), (64, 64, 256)])
def test_what_is_fetched_ahead_is_of_the_next_weight(rows, out, width):
    _, (weight,) = operands(1, (out,), width)
    found = mosaic._fetched(jnp.zeros((rows, width), jnp.float16), weight)
    if rows > 32:
        assert not found
        return
    parts, size = found["fetched"]
    assert found["following"] is weight.packed
    assert parts == plan.plan(rows, (out,), width, 4).split
    assert 0 < size <= width // 2 // parts
    assert size % 16 == 0
    assert out * parts * size <= 9_000_000


def test_compiled_for_an_h200_products_spill_nothing_and_do_not_wait():
    kernels = compiled_for_h200("""
import functools
from griffin_jax.kernels.mosaic_gpu import packed_kernel, plan

for rows in (8, 64, 128):
    for widths, width in (((12288, 12288), 4096), ((4096,), 12288)):
        build(
            functools.partial(
                packed_kernel.multiply,
                plan=plan.plan(rows, widths, width, 4),
                quant_type="nf4",
                dtype=jnp.dtype("bfloat16"),
            ),
            jax.ShapeDtypeStruct((rows, width), jnp.float16),
            [jax.ShapeDtypeStruct((out, width // 2), jnp.uint8) for out in widths],
            [jax.ShapeDtypeStruct((out, width // 64), jnp.float32) for out in widths],
        )
""")
    assert len(kernels) == 6
    for kernel in kernels:
        assert kernel["registers"] <= 168
        assert not kernel["spills"]
        assert not kernel["serialized"]
