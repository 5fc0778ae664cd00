"""Gradients and steps on a mesh."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.language_model import LanguageModel
from griffin_jax.loading import quantize
from griffin_jax.models import Griffin, put_on_mesh
from griffin_jax.quantization import QuantizationConfig
from griffin_jax.sharding import jit_on_mesh, make_mesh
from griffin_jax.training.lora import LoRAConfig, adapt, init_adapter
from griffin_jax.training.optimizer import OptimizerConfig, adamw
from griffin_jax.training.train_step import (
    TrainState,
    make_eval_step,
    make_train_step,
    put_batch,
    shard_state,
    token_losses,
)
from tests.sharding.eight_devices.meshes import CONFIG, MESHES, WIDE, collectives, mesh_called
from tests.tiny import params_of, random_tokens, relative_error

ROWS, TIME = 8, 32
# Documents begin anywhere, some of them where another device's part of time does.
BEGINS = np.array([0, 5, 31, 16, 8, 1, 24, 3])[:, None]
T = np.arange(TIME)[None]
BATCH = {
    "inputs": random_tokens(CONFIG, (ROWS, TIME)),
    "targets": random_tokens(CONFIG, (ROWS, TIME), seed=1),
    "positions": np.where(T >= BEGINS, T - BEGINS, T).astype(np.int32),
    "mask": (np.random.default_rng(0).random((ROWS, TIME)) > 0.2).astype(np.float32),
}


def one_device():
    return make_mesh(devices=jax.devices()[:1])


def errors(actual, expected):
    return {
        jax.tree_util.keystr(path): relative_error(a, b)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
        )
    }


def gradient(mesh):
    def loss(params, batch):
        nll, squares = token_losses(Griffin(CONFIG), params, batch)
        return nll + 1e-3 * squares

    params = put_on_mesh(CONFIG, params_of(CONFIG), mesh)
    batch = put_batch(BATCH, mesh)
    program = jit_on_mesh(jax.value_and_grad(loss)).lower(params, batch).compile()
    return *program(params, batch), program


@pytest.fixture(scope="module")
def expected_gradient():
    return gradient(one_device())


@pytest.mark.parametrize("name", MESHES)
def test_the_gradient_of_a_mesh_equals_that_of_one_device(name, expected_gradient):
    loss, grads, program = gradient(mesh_called(name))
    np.testing.assert_allclose(loss, expected_gradient[0], rtol=1e-5)
    found = errors(grads, expected_gradient[1])
    assert max(found.values()) <= 1e-5, found
    if name == "model 8":  # neither logits nor their gradient are gathered
        assert set(collectives(program)) == {"all-reduce"}
    if "fsdp 2" in name:  # each device sums up its part of the embedding's width
        widths = re.findall(r" = f32\[\d+,(\d+)\]\S* scatter\(", program.as_text())
        assert widths == [str(CONFIG.width // 2)]


def step_once(mesh, config=CONFIG, lora=None, base=None, **options):
    """Parameters, metrics and held-out sums after one step of AdamW."""
    model = Griffin(config, dropout=options.pop("dropout", 0.0), remat=options.pop("remat", "none"))
    optimizer = adamw(OptimizerConfig(1e-2, warmup_steps=1, eps=1e-3), 10)
    frozen, assemble = None, lambda trainable, _: trainable
    params = jax.tree.map(jnp.copy, params_of(config))
    if lora:
        frozen = put_on_mesh(config, base, mesh)
        params = init_adapter(lora, base, jax.random.key(0))
        assemble = lambda trainable, frozen: adapt(lora, trainable, frozen)  # noqa: E731
    # The learning rate is 0 at the first step.
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    state = shard_state(config, state, mesh)
    step = make_train_step(model, optimizer, mesh, assemble, z_loss=1e-3, **options)
    batch = put_batch(BATCH, mesh)
    for _ in range(2):
        state, metrics = step(state, frozen, batch)
    sums = make_eval_step(model, mesh, assemble, loss_chunks=2)(state.params, frozen, batch)
    return state, metrics, sums


def assert_same_step(actual, expected, bound=1e-5):
    moved = errors(actual[0].params, expected[0].params)
    assert max(moved.values()) <= bound, moved
    moments = errors(actual[0].optimizer, expected[0].optimizer)
    assert max(moments.values()) <= 1e-4, moments
    for name, value in expected[1].items():
        np.testing.assert_allclose(actual[1][name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(actual[2], expected[2], rtol=1e-5)


OPTIONS = {"microbatches": 2, "loss_chunks": 2, "remat": "block"}


@pytest.fixture(scope="module")
def expected_step():
    return step_once(one_device(), **OPTIONS)


@pytest.mark.parametrize("name", ["model 8", "data 2, fsdp 2, model 2", "all but fsdp"])
def test_a_step_of_a_mesh_equals_that_of_one_device_and_microbatches_change_nothing(
    name, expected_step
):
    mesh = mesh_called(name)
    found = step_once(mesh, **OPTIONS)
    assert_same_step(found, expected_step)
    weight = found[0].optimizer[1][0].mu["blocks_0"]["mlp_block"]["up_proj"]["weight"]
    parts = mesh.shape["model"] * mesh.shape["fsdp"]
    assert weight.addressable_shards[0].data.size == weight.size // parts


def test_dropout_does_not_depend_on_the_shape_of_a_mesh():
    runs = [step_once(mesh_called(name), dropout=0.2) for name in ("model 8", "all but fsdp")]
    assert_same_step(*runs)


def test_an_adapter_over_four_bit_weights_trains_on_a_mesh():
    base = quantize(
        LanguageModel(WIDE, params_of(WIDE)), QuantizationConfig(bnb_4bit_quant_type="nf4")
    ).params
    lora = LoRAConfig(rank=4)
    expected = step_once(one_device(), WIDE, lora, base)
    found = step_once(mesh_called("data 2, fsdp 2, model 2"), WIDE, lora, base)
    # b begins at zero: what is compared is one step's rounding, not a parameter's.
    assert_same_step(found, expected, bound=5e-5)


def test_a_batch_is_cut_by_rows_and_by_time():
    mesh = mesh_called("all but fsdp")
    found = put_batch(BATCH, mesh)
    for name, value in BATCH.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].addressable_shards[0].data.shape == (4, 16)
