"""4-bit products of a step's kernels against weights decoded in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from griffin_jax.kernels.rms_norm import rms_norm
from griffin_jax.kernels.step_gpu import norm, pairs, products
from griffin_jax.kernels.step_gpu.launch import Phase, launch
from griffin_jax.quantization import dequantize, quantize
from griffin_jax.quantization.tensor import abstract
from tests.kernels.lowering import for_gpu

ON_GPU = jax.default_backend() == "gpu"


def multiply(weights, x, scale=None, interpret=not ON_GPU):
    """Every row of the weights times a vector, in the programs and rounds of a step.

    Args:
      weights: 4-bit weights of one shape.
      x: The vector.
      scale: The scale of its norm, None for none; epsilon is 1e-6.
      interpret: Run on any device, slowly.
    """
    if scale is None:
        arrays, name, factor = products.vector("x", x, True), "x", None
    else:
        of_x = norm.Norm("x", True, 1e-6)
        arrays = of_x.prepare_inputs(x, scale, 2, interpret=interpret)
        name, factor = of_x.vector, of_x.factor

    def body(refs, row, count, wait):
        compute = products.start_matvec(
            refs["weights"], row, count, refs, name, factor, interpret=interpret
        )
        wait()
        for index, y in enumerate(compute()):
            refs[str(index)][pl.ds(row, count)] = y

    out = jax.ShapeDtypeStruct(weights[0].shape[:1], jnp.float32)
    outputs = {str(i): out for i in range(len(weights))}
    phase = Phase([products.part(weights, body)], {"weights": weights}, outputs)
    options = products.options(weights[0])
    found = launch([phase], arrays, name="products", interpret=interpret, **options)
    return [found[str(i)] for i in range(len(weights))]


def drawn(out, width, count, **options):
    keys = jax.random.split(jax.random.key(0), count + 1)
    weights = [quantize(jax.random.normal(key, (out, width)), **options) for key in keys[1:]]
    return weights, jax.random.normal(keys[0], (width,)).astype(jnp.bfloat16)


def expected(weight, x):
    return np.asarray(dequantize(weight, jnp.float32), np.float64) @ np.asarray(x, np.float64)


@pytest.mark.parametrize("quant_type", ["nf4", pytest.param("fp4", marks=pytest.mark.slow)])
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize(
    "out, width, count, block_size",
    [(64, 512, 1, 64), (32, 1536, 2, 64), (96, 1024, 1, 128), (32, 2048, 2, 512)],
)
def test_products_are_those_of_decoded_weights(
    out, width, count, block_size, quant_type, double_quant
):
    weights, x = drawn(
        out, width, count, quant_type=quant_type, double_quant=double_quant, block_size=block_size
    )
    assert pairs.unsupported_reason(weights) is None
    for weight, y in zip(weights, jax.jit(multiply)(weights, x), strict=True):
        wanted = expected(weight, x)
        # Codes are rounded to float16.
        assert np.linalg.norm(y - wanted) <= 2**-11 * np.linalg.norm(wanted)


@pytest.mark.parametrize("count, rounds", [(1, 2), (2, 4)])
def test_programs_that_take_several_rounds_miss_no_row(monkeypatch, count, rounds):
    monkeypatch.setattr(pairs, "_SLOTS", 4)
    weights, x = drawn(256, 512, count)
    assert pairs.programs(weights)[1] == rounds
    for weight, y in zip(weights, jax.jit(multiply)(weights, x), strict=True):
        wanted = expected(weight, x)
        assert np.linalg.norm(y - wanted) <= 2**-11 * np.linalg.norm(wanted)
    text = for_gpu(lambda *a: multiply(*a, interpret=False), weights, x)
    assert text.count("custom_call @__gpu$xla.gpu.triton") == 1


def test_programs_that_take_several_rounds_wait_for_the_vector(monkeypatch):
    monkeypatch.setattr(pairs, "_SLOTS", 4)
    weights, x = drawn(256, 512, 2)
    assert pairs.programs(weights)[1] == 4
    interpret = not ON_GPU

    def write(refs, i, wait):
        wait()
        rows = pl.ds(i * 64, 64)
        pairs.store(refs["v"], i * 64, refs["x"][rows])

    def body(refs, row, count, wait):
        compute = products.start_matvec(refs["weights"], row, count, refs, "v", interpret=interpret)
        wait()
        for name, y in zip("ab", compute(), strict=True):
            refs[name][pl.ds(row, count)] = y

    def run(weights, x):
        out = jax.ShapeDtypeStruct((256,), jnp.float32)
        phases = [
            Phase([(8, write)], {"x": x}, products.vector_like("v", 512, x.dtype, True)),
            Phase([products.part(weights, body)], {"weights": weights}, {"a": out, "b": out}),
        ]
        counts = {"counts": jnp.zeros(1, jnp.int32)}
        options = products.options(weights[0])
        return launch(phases, counts, name="rounds", interpret=interpret, **options)

    found = jax.jit(run)(weights, x)
    for weight, name in zip(weights, "ab", strict=True):
        wanted = expected(weight, x)
        assert np.linalg.norm(found[name] - wanted) <= 2**-11 * np.linalg.norm(wanted)


# The squares of 512 numbers are in two parts, those of 1,536 in six.
@pytest.mark.parametrize("width", [512, 1536])
def test_a_norm_on_the_way_is_that_of_the_vector(width):
    weights, x = drawn(64, width, 2)
    x, scale = 7 * x, jax.random.normal(jax.random.key(1), (width,), jnp.bfloat16)

    found = jax.jit(multiply)(weights, x, scale)
    normed = rms_norm(x.astype(jnp.float32), scale, 1e-6)
    for weight, y in zip(weights, found, strict=True):
        wanted = expected(weight, normed)
        assert np.linalg.norm(y - wanted) <= 2**-11 * np.linalg.norm(wanted)
    text = for_gpu(lambda *a: multiply(*a, interpret=False), weights, x, scale)
    assert text.count("custom_call @__gpu$xla.gpu.triton") == 2


@pytest.mark.parametrize("double_quant", [False, True])
def test_two_weights_may_have_blocks_of_two_sizes(double_quant):
    (one,), x = drawn(32, 1024, 1, double_quant=double_quant)
    (two,), _ = drawn(32, 1024, 1, double_quant=double_quant, block_size=256)
    for weight, y in zip((one, two), jax.jit(multiply)([one, two], x), strict=True):
        wanted = expected(weight, x)
        assert np.linalg.norm(y - wanted) <= 2**-11 * np.linalg.norm(wanted)


def test_large_and_small_numbers_survive():
    weights, _ = drawn(32, 512, 1)
    for size in (1e-3, 9e5):
        x = (size * jax.random.uniform(jax.random.key(1), (512,), minval=-1)).astype(jnp.bfloat16)
        [y] = jax.jit(multiply)(weights, x)
        wanted = expected(weights[0], x)
        assert np.linalg.norm(y - wanted) <= 1e-3 * np.linalg.norm(wanted)
    [y] = jax.jit(multiply)(weights, jnp.full(512, 1e30, jnp.bfloat16))
    assert np.isfinite(y).all()


@pytest.mark.parametrize("begin, count", [(0, 64), (16, 16), (24, 8), (4, 4)])
def test_a_vector_written_in_parts_is_the_one_written_whole(begin, count):
    x = jax.random.normal(jax.random.key(0), (64,))

    def body(refs, i, wait):
        wait()
        pairs.store(refs["v"], begin, refs["x"][pl.ds(begin, count)])

    phase = Phase([(1, body)], {"x": x}, updates={"v": jnp.zeros(64, jnp.float16)})
    found = launch([phase], {}, name="store", interpret=not ON_GPU)
    own = (jnp.arange(64) >= begin) & (jnp.arange(64) < begin + count)
    np.testing.assert_array_equal(found["v"], pairs.to_vector(jnp.where(own, x, 0)))


@pytest.mark.parametrize(
    "out, width, count",
    [(4096, 4096, 2), (4096, 4096, 1), (12288, 4096, 2), (4096, 12288, 1), (2560, 2560, 1)],
)
def test_programs_share_the_rows_and_fill_the_machine(out, width, count):
    rows, rounds = pairs.programs([abstract((out, width), "bfloat16", "nf4")] * count)
    assert out % (rows * rounds) == 0
    if width % 2048 == 0:
        running = out // rows / rounds
        assert 0.9 * pairs._SLOTS <= running <= pairs._SLOTS


@pytest.mark.parametrize(
    "shape, options, reason",
    [
        ((64, 768), {}, "64 x 768"),
        ((48, 512), {}, "48 x 512"),
        ((64, 512), {"block_size": 32}, "blocks of 32"),
    ],
)
def test_what_is_not_served_says_why(shape, options, reason):
    weight = quantize(jnp.ones(shape), **options)
    assert reason in pairs.unsupported_reason([weight])
    other = quantize(jnp.ones((64, 512)), quant_type="fp4")
    assert "several types" in pairs.unsupported_reason([quantize(jnp.ones((64, 512))), other])
