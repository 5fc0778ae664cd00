import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels import dense_matmul_mosaic_gpu as dense
from griffin_jax.kernels.mosaic_gpu import backend, dense_kernel, dense_plan
from griffin_jax.kernels.mosaic_gpu.dense_plan import DensePlan
from tests.kernels.mosaic import ON_HOPPER, compiled_for_h200, interpreter, no_races

# The 9B's gate and up, down, both branches, the end of a mixing half, queries with keys and values.
SHAPES = [
    ((12288, 12288), 4096, True),
    ((4096,), 12288, False),
    ((4096, 4096), 4096, False),
    ((4096,), 4096, False),
    ((4096, 256, 256), 4096, False),
]


def operands(rows, outs, width, dtype="bfloat16"):
    random = np.random.default_rng(rows)

    def normal(*shape, scale=1.0):
        return jnp.asarray(scale * random.standard_normal(shape, np.float32), dtype)

    weights = [normal(out, width, scale=width**-0.5) for out in outs]
    return normal(rows, width), weights, [normal(out) for out in outs]


def exact(array):
    return np.asarray(array.astype(jnp.float32), np.float64)


def definition(x, weights):
    return [exact(x) @ exact(weight).T for weight in weights]


def gated_definition(x, weights, biases):
    gate, up = definition(x, weights)
    if biases:
        gate, up = gate + exact(biases[0]), up + exact(biases[1])
    return np.asarray(jax.nn.gelu(jnp.asarray(gate, jnp.float32)), np.float64) * up


def close(y, wanted, bound):
    assert np.linalg.norm(np.asarray(y, np.float64) - wanted) < bound * np.linalg.norm(wanted)


# One tile a block, so two warpgroups: with more than a machine has threads for the interpreter waits.
@pytest.mark.parametrize(
    ("rows", "outs", "width", "plan"),
    [
        (1, (64,), 128, DensePlan(8, 1, 1, 64, 2)),
        (4, (128, 64), 256, DensePlan(8, 1, 1, 64, 3)),
        pytest.param(24, (128,), 512, DensePlan(32, 1, 2, 128, 2), marks=pytest.mark.slow),
        pytest.param(64, (64,), 256, DensePlan(64, 1, 4, 64, 1), marks=pytest.mark.slow),
    ],
)
def test_however_a_product_is_shared_out_it_is_the_definition(rows, outs, width, plan):
    x, weights, _ = operands(rows, outs, width)
    with no_races():
        found = dense_kernel.multiply(x, weights, plan=plan, interpret=interpreter())
    for y, wanted in zip(found, definition(x, weights), strict=True):
        y = y.sum(axis=0) if y.ndim == 3 else y
        assert (y.shape, y.dtype) == (wanted.shape, jnp.float32)
        close(y, wanted, 1e-6)


@pytest.mark.parametrize(
    ("rows", "features", "plan", "biased"),
    [
        (5, 64, DensePlan(8, 1, 1, 64, 2, gated=True), True),
        pytest.param(8, 64, DensePlan(8, 1, 1, 128, 2, gated=True), False, marks=pytest.mark.slow),
    ],
)
def test_a_gate_is_taken_through_gelu_and_gates(rows, features, plan, biased):
    x, weights, biases = operands(rows, (features, features), 256)
    biases = biases if biased else []
    with no_races():
        [h] = dense_kernel.multiply(x, weights, biases, plan=plan, interpret=interpreter())
    close(h, gated_definition(x, weights, biases), 1e-6 if not ON_HOPPER else 1e-5)


def test_products_keep_leading_axes_and_the_type_of_x():
    x, weights, _ = operands(6, (64,), 128, "float16")
    with no_races():
        [y] = dense.dense_matmuls(x.reshape(2, 3, 128), tuple(weights), False, interpreter())
    assert (y.shape, y.dtype) == ((2, 3, 64), jnp.float16)
    close(y.reshape(6, 64), definition(x, weights)[0], 6e-4)


@pytest.mark.slow
def test_gradients_equal_the_definition():
    x, weights, _ = operands(3, (64, 128), 128)

    def gradient(product):
        def loss(x, weights):
            return sum((y.astype(jnp.float32) ** 2).sum() for y in product(x, weights))

        return jax.tree.leaves(jax.grad(loss, (0, 1))(x, tuple(weights)))

    found = gradient(lambda x, weights: dense.dense_matmuls(x, weights, False, interpreter()))
    wanted = gradient(lambda x, weights: [x @ weight.T for weight in weights])
    for a, b in zip(found, wanted, strict=True):
        close(a.astype(jnp.float32), exact(b), 1e-2)


@pytest.mark.skipif(not ON_HOPPER, reason="takes a GPU")
@pytest.mark.parametrize("rows", [3, 12, 16, 64])
@pytest.mark.parametrize(("outs", "width", "gated"), SHAPES)
def test_shapes_of_a_model(rows, outs, width, gated):
    x, weights, biases = operands(rows, outs, width)
    if gated:
        found = [dense.gated_matmul(x, *weights, biases)]
        wanted = [gated_definition(x, weights, biases)]
    else:
        found, wanted = dense.dense_matmuls(x, tuple(weights)), definition(x, weights)
    for y, values in zip(found, wanted, strict=True):
        close(exact(y), values, 2.5e-3)


@pytest.mark.parametrize("rows", [1, 4, 16, 33, 64])
@pytest.mark.parametrize(
    ("outs", "width", "gated"), [*SHAPES, ((2560,), 7680, False), ((7680, 7680), 2560, True)]
)
def test_plans_fit_the_chip(rows, outs, width, gated):
    for to_kernel in (False, True):
        found = dense_plan.dense_plan(rows, outs, width, gated, to_kernel)
        assert rows <= found.columns <= dense_plan.MAX_COLUMNS
        assert all(out % (64 * found.tiles // (1 + gated)) == 0 for out in outs)
        assert width % (found.span * found.split) == 0
        staged = found.stages * dense_plan.stage_bytes(found.columns, found.tiles, found.span)
        assert staged + gated * dense_plan.swap_bytes(found.tiles) + 2048 <= 232448
        assert 2 <= found.stages <= width // (found.span * found.split)


@pytest.mark.parametrize("rows", [1, 5, 12, 63])
def test_any_number_of_rows_is_lowered_for_a_gpu(rows):
    def both(x, weights, biases):
        h = dense.gated_matmul(x, weights[0], weights[1], biases)
        return dense.dense_matmuls(h, (weights[2],))

    def half(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    weights = [half(128, 256), half(128, 256), half(64, 128)]
    traced = jax.jit(both).trace(half(rows, 256), weights, [half(128), half(128)])
    assert [y.shape for y in traced.out_info] == [(rows, 64)]
    assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_what_is_not_served_is_told(monkeypatch):
    x, weights, _ = operands(2, (64,), 128)
    if not ON_HOPPER:
        assert "it needs a Hopper GPU" in dense.unsupported_reason(x, weights)
    monkeypatch.setattr(backend, "missing", lambda: None)
    assert dense.unsupported_reason(x, weights) is None
    single = x.astype(jnp.float32)
    assert "not in bfloat16, float32" in dense.unsupported_reason(single, weights)
    assert "65 rows (needs at most 64)" in dense.unsupported_reason(
        jnp.zeros((65, 128), x.dtype), weights
    )
    odd = [jnp.zeros((96, 128), x.dtype)]
    assert "weights of 96 x 128" in dense.unsupported_reason(x, odd)
    assert "gates of 64 of 128 outputs" in dense.gated_fits(weights[0], jnp.zeros((128, 128)))


def test_compiled_for_an_h200_products_spill_nothing_and_do_not_wait():
    kernels = compiled_for_h200("""
import functools
from griffin_jax.kernels.mosaic_gpu import dense_kernel, dense_plan

def half(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

for rows in (4, 64):
    for outs, width, gated in (((12288, 12288), 4096, True), ((4096,), 12288, False)):
        plan = dense_plan.dense_plan(rows, outs, width, gated)
        build(
            functools.partial(dense_kernel.multiply, plan=plan, dtype=jnp.dtype("bfloat16")),
            half(rows, width),
            [half(out, width) for out in outs],
            [half(out) for out in outs] if gated else [],
        )
""")
    assert len(kernels) == 4
    for kernel in kernels:
        assert kernel["registers"] <= 128
        assert not kernel["spills"]
        assert not kernel["serialized"]
