"""The same text and scores under the settings of JAX that projects switch on to find faults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.models import Griffin, init_params, init_state, stack_params
from griffin_jax.sharding import make_mesh
from griffin_jax.training.lora import LoRAConfig, init_adapter
from griffin_jax.training.optimizer import OptimizerConfig, adamw, learning_rate_schedule
from griffin_jax.training.train_step import TrainState, make_train_step
from tests.inference.tiny_model import CONFIG, language_model

SETTINGS = {
    "jax_numpy_dtype_promotion": "strict",
    "jax_enable_x64": True,
    "jax_debug_nans": True,
    "jax_check_tracer_leaks": True,
}
DRAWN = {"max_new_tokens": 3, "temperature": 0.9, "top_k": 9, "top_p": 0.9, "seed": 3}
PAIRS = [([5, 6], [7, 8]), ([9], [10])]


@pytest.fixture(scope="module")
def plain():
    lm = language_model()
    return lm.sample([[5, 6, 7]], **DRAWN)[0].tokens, lm.score(PAIRS)


@pytest.fixture
def setting(request):
    before = getattr(jax.config, request.param)
    jax.config.update(request.param, SETTINGS[request.param])
    yield request.param
    jax.config.update(request.param, before)


@pytest.mark.parametrize("setting", SETTINGS, indirect=True)
def test_text_and_scores_do_not_depend_on_it(plain, setting):
    tokens, scores = plain
    lm = language_model()
    assert lm.sample([[5, 6, 7]], **DRAWN)[0].tokens == tokens
    found = lm.score(PAIRS)
    np.testing.assert_allclose([p for p, _ in found], [p for p, _ in scores], rtol=1e-4)


@pytest.fixture
def x64():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_64_bits_reach_neither_parameters_nor_state(x64, dtype):
    params = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0), dtype))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    state = init_state(CONFIG, 2, dtype)
    model = Griffin(CONFIG, dtype=jnp.dtype(dtype))
    for time in (1, 5):
        tokens = jax.ShapeDtypeStruct((2, time), jnp.int32)
        logits, after = jax.eval_shape(
            lambda params, tokens: model.apply({"params": params}, tokens, state), params, tokens
        )
        assert logits.dtype == jnp.float32
        assert [x.dtype for x in jax.tree.leaves(after)] == [
            x.dtype for x in jax.tree.leaves(state)
        ]
    adapter = jax.eval_shape(lambda: init_adapter(LoRAConfig(), params, jax.random.key(0)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(adapter)} == {"float32"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stacked", [False, True])
def test_no_dtype_is_promoted_in_silence(dtype, stacked):
    with jax.numpy_dtype_promotion("strict"):
        params = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0), dtype))
        if stacked:
            params = jax.eval_shape(lambda tree: stack_params(CONFIG, tree), params)
        model = Griffin(CONFIG, dtype=jnp.dtype(dtype))
        state = init_state(CONFIG, 2, dtype, capacity=64)

        def apply(params, tokens, state=None):
            return model.apply({"params": params}, tokens, state, lengths=jnp.array([1, 2]))[0]

        for time in (1, 5, 40):
            tokens = jax.ShapeDtypeStruct((2, time), jnp.int32)
            jax.eval_shape(apply, params, tokens, state)
            jax.eval_shape(apply, params, tokens)
        loss = jax.grad(lambda params, tokens: apply(params, tokens).sum())
        jax.eval_shape(loss, params, jax.ShapeDtypeStruct((2, 16), jnp.int32))


def test_no_dtype_of_a_training_step_is_promoted_in_silence():
    with jax.numpy_dtype_promotion("strict"):
        optimizer = adamw(OptimizerConfig(warmup_steps=1), 9)
        step = make_train_step(
            Griffin(CONFIG, dropout=0.1), optimizer, make_mesh(), z_loss=1e-4, ema=0.9
        )

        def start():
            params = init_params(CONFIG, jax.random.key(0))
            return TrainState(jnp.int32(0), params, optimizer.init(params), params)

        state = jax.eval_shape(start)
        rows = jax.ShapeDtypeStruct((2, 16), jnp.int32)
        batch = {name: rows for name in ("inputs", "targets", "positions")}
        batch["mask"] = jax.ShapeDtypeStruct((2, 16), jnp.float32)
        step.lower(state, None, batch)
        assert float(learning_rate_schedule(OptimizerConfig(warmup_steps=1), 9)(1)) > 0
