import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels import packed_matmul_mosaic_gpu as mosaic
from griffin_jax.kernels.mosaic_gpu import backend, dense_plan
from griffin_jax.kernels.mosaic_gpu.dense_plan import DensePlan
from griffin_jax.kernels.mosaic_gpu.plan import Plan
from griffin_jax.models import gated_mlp
from griffin_jax.models.blocks import MLPBlock
from griffin_jax.quantization import dequantize, quantize
from tests.kernels.mosaic import ON_HOPPER, compiled_for_h200, interpreter, no_races

WIDTH, EXPANDED = 256, 256


def plain(params, x, *, biased=True):
    layers = MLPBlock(WIDTH, EXPANDED, biased, 1.0, x.dtype, x.dtype, kernel="reference")
    return layers.apply({"params": params}, x)


def operands(rows, *, width=WIDTH, expanded=EXPANDED, biased=True, **options):
    random = np.random.default_rng(rows)

    def layer(out, width):
        weight = 1.5 * width**-0.5 * random.standard_normal((out, width), np.float32)
        layer = {"weight": quantize(weight, **options)}
        bias = random.standard_normal(out, np.float32)
        return layer | ({"bias": jnp.asarray(bias, jnp.bfloat16)} if biased else {})

    params = {name: layer(expanded, width) for name in ("gate_proj", "up_proj")}
    params["down_proj"] = layer(width, expanded)
    return params, jnp.asarray(random.standard_normal((rows, 1, width)), jnp.bfloat16)


def single(layer):
    weight = {"weight": dequantize(layer["weight"], jnp.float32)}
    return weight | {name: x.astype(jnp.float32) for name, x in layer.items() if name == "bias"}


def check(params, x, **options):
    """Against float32 with the weights decoded: the sum and the bias round once each."""
    assert backend.missing() or gated_mlp.unsupported_reason(params, x) is None
    with no_races():
        y = gated_mlp.gated_mlp(plain, params, x, interpret=interpreter())
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    with jax.default_matmul_precision("highest"):
        layers = {name: single(layer) for name, layer in params.items()}
        wanted = plain(layers, x.astype(jnp.float32), **options)
    y, wanted = np.asarray(y, np.float64), np.asarray(wanted, np.float64)
    assert np.linalg.norm(y - wanted) < 3.2e-3 * np.linalg.norm(wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (3, {}),
        (16, {"biased": False, "quant_type": "fp4", "block_size": 32}),
        (20, {"double_quant": True}),
    ],
)
def test_two_launches_equal_the_layers(rows, options):
    biased = options.get("biased", True)
    check(*operands(rows, **options), **({} if biased else {"biased": False}))


@pytest.mark.slow
def test_however_rows_and_outputs_are_shared_out_it_is_the_same(monkeypatch):
    def shared(rows, features, width, scales, gated=False, to_kernel=False):
        del rows, features, width, to_kernel
        return Plan(8, 2, 1, 1, 1, scales, ahead=False, gated=gated)

    monkeypatch.setattr(mosaic, "plan", shared)
    check(*operands(16))


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "biased"), [(3, True), (8, False)])
def test_so_do_they_of_weights_in_16_bits(rows, biased, monkeypatch):
    params, x = operands(rows, biased=biased)
    params = {
        name: layer | {"weight": dequantize(layer["weight"], jnp.bfloat16)}
        for name, layer in params.items()
    }
    share = DensePlan(8, 1, 1, 128, 2), DensePlan(8, 1, 1, 128, 2, gated=True)
    monkeypatch.setattr(dense_plan, "dense_plan", lambda *_, gated=False, **__: share[gated])
    with no_races():
        y = gated_mlp.gated_mlp(plain, params, x, interpret=interpreter())
    with jax.default_matmul_precision("highest"):
        layers = {
            name: {key: leaf.astype(jnp.float32) for key, leaf in layer.items()}
            for name, layer in params.items()
        }
        wanted = np.asarray(plain(layers, x.astype(jnp.float32), biased=biased))
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert np.linalg.norm(np.asarray(y, np.float32) - wanted) < 5e-3 * np.linalg.norm(wanted)


def test_weights_in_16_bits_are_served_for_few_rows(monkeypatch):
    monkeypatch.setattr(backend, "missing", lambda: None)
    weight = {"weight": jnp.zeros((WIDTH, WIDTH), jnp.bfloat16)}
    params = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), weight)
    assert gated_mlp.unsupported_reason(params, jnp.zeros((64, 1, WIDTH), jnp.bfloat16)) is None
    for shape, reason in (((65, 1), "65 rows"), ((2, 8), "one token of each row")):
        x = jnp.zeros((*shape, WIDTH), jnp.bfloat16)
        assert reason in gated_mlp.unsupported_reason(params, x)


@pytest.mark.skipif(not ON_HOPPER, reason="takes a GPU")
@pytest.mark.parametrize("rows", [1, 16, 64, 256, 300])
def test_shapes_that_blocks_share_out(rows):
    params, x = operands(rows, width=512, expanded=768)

    def definition(params, x):
        return MLPBlock(512, 768, True, 1.0, x.dtype, x.dtype, kernel="reference").apply(
            {"params": params}, x
        )

    y = gated_mlp.gated_mlp(definition, params, x)
    layers = {name: single(layer) for name, layer in params.items()}
    with jax.default_matmul_precision("highest"):
        wanted = np.asarray(definition(layers, x.astype(jnp.float32)))
    assert np.linalg.norm(np.asarray(y, np.float32) - wanted) < 3.2e-3 * np.linalg.norm(wanted)


def test_its_gradient_is_that_of_the_layers():
    params, x = operands(3)

    def gradient(function):
        return jax.grad(lambda x: (function(params, x).astype(jnp.float32) ** 2).sum())(x)

    found = gradient(functools.partial(gated_mlp.gated_mlp, plain))
    np.testing.assert_array_equal(*(np.asarray(g, np.float32) for g in (found, gradient(plain))))


def test_what_is_not_served_is_told(monkeypatch):
    params, x = operands(2)
    assert ON_HOPPER or "it needs a Hopper GPU" in gated_mlp.unsupported_reason(params, x)
    monkeypatch.setattr(backend, "missing", lambda: None)
    assert gated_mlp.unsupported_reason(params, x) is None
    assert "not float32" in gated_mlp.unsupported_reason(params, x.astype(jnp.float32))
    some = params | {"up_proj": single(params["up_proj"])}
    assert gated_mlp.unsupported_reason(some, x) == (
        "weights that are neither all in 4 bits nor all arrays"
    )
    odd, x = operands(2, expanded=320)
    assert "gates of 320 of 320 outputs" in gated_mlp.unsupported_reason(odd, x)


@pytest.mark.skipif(ON_HOPPER, reason="this is a Hopper GPU")
def test_forced_elsewhere_the_kernel_refuses():
    params, x = operands(2)
    forced = MLPBlock(WIDTH, EXPANDED, True, 1.0, x.dtype, x.dtype, kernel="mosaic_gpu")
    with pytest.raises(ValueError, match="mlp_block: kernel 'mosaic_gpu' cannot serve: it needs a"):
        forced.apply({"params": params}, x)


def test_compiled_for_an_h200_gates_spill_nothing_and_do_not_wait():
    kernels = compiled_for_h200("""
import functools
from griffin_jax.kernels.mosaic_gpu import packed_kernel, plan

for rows in (8, 64, 128):
    build(
        functools.partial(
            packed_kernel.multiply,
            plan=plan.plan(rows, (12288, 12288), 4096, 4, gated=True),
            quant_type="nf4",
        ),
        jax.ShapeDtypeStruct((rows, 4096), jnp.float16),
        [jax.ShapeDtypeStruct((12288, 2048), jnp.uint8)] * 2,
        [jax.ShapeDtypeStruct((12288, 64), jnp.float32)] * 2,
        [jax.ShapeDtypeStruct((12288,), jnp.bfloat16)] * 2,
    )
""")
    assert len(kernels) == 3
    for kernel in kernels:
        assert kernel["registers"] <= 168
        assert not kernel["spills"]
        assert not kernel["serialized"]
