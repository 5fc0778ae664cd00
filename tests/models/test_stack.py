"""Stacked layers compute what the same layers compute one by one."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.config import ATTENTION, RECURRENT
from griffin_jax.inference import Engine
from griffin_jax.models import Griffin, init_state, is_stacked, stack_params, unstack_params
from griffin_jax.models.lora_weight import LoRAWeight
from griffin_jax.models.stack import StackedState, stack_state, unstack_state
from griffin_jax.quantization import QuantizedTensor, quantize
from tests.tiny import GRIFFIN, assert_same_state, forward, params_of, random_tokens, relative_error

DEEP = GRIFFIN.replace(num_layers=5)
CONFIGS = {
    "two groups and a layer": DEEP,
    "whole groups": GRIFFIN.replace(block_pattern=(RECURRENT, RECURRENT, ATTENTION)),
    "less than a group": GRIFFIN.replace(num_layers=1),
}
TIMES = (1, 11)  # decoding, and a chunk longer than the rings


@functools.cache
def packed_params(double_quant=False):
    """Blocks' linear weights in 4 bits, in blocks of 32 or, where those do not end a row, flat."""

    def pack(path, leaf):
        linear = path[0].startswith("blocks_") and path[-1] == "weight" and leaf.ndim == 2
        if not linear or "conv_1d" in path:
            return leaf
        return quantize(leaf, block_size=32, double_quant=double_quant)

    flat = flax.traverse_util.flatten_dict(params_of(DEEP))
    return flax.traverse_util.unflatten_dict({p: pack(p, leaf) for p, leaf in flat.items()})


def assert_same_tree(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def read(config, params, dtype=jnp.float32):
    """Logits of calls of several lengths and the state after them."""
    logits, state = [], init_state(config, 3, dtype)
    for i, time in enumerate(TIMES):
        lengths = np.array([time, time, max(time - 2, 0)], np.int32)
        tokens = random_tokens(config, (3, time), seed=i)
        out, state = forward(config, dtype)(params, tokens, state, None, lengths)
        logits.append(np.where((np.arange(time) < lengths[:, None])[..., None], out, 0))
    return np.concatenate(logits, axis=1), state


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CONFIGS[name], id=name, marks=marks)
        for name, marks in zip(CONFIGS, [(), pytest.mark.slow, ()], strict=True)
    ],
)
def test_logits_and_state_equal_those_of_layers_one_by_one(config):
    params = params_of(config)
    logits, state = read(config, stack_params(config, params))
    expected, expected_state = read(config, params)
    assert relative_error(logits, expected) <= 1e-5
    assert_same_state(state, expected_state)


@pytest.mark.slow
def test_packed_layers_equal_those_one_by_one():
    params = packed_params(double_quant=True)
    logits, state = read(DEEP, stack_params(DEEP, params))
    expected, expected_state = read(DEEP, params)
    assert relative_error(logits, expected) <= 1e-5
    assert_same_state(state, expected_state)


@pytest.mark.slow
def test_gradients_equal_those_of_layers_one_by_one():
    model = Griffin(DEEP, remat="block")
    tokens = random_tokens(DEEP, (2, 5))

    @jax.jit
    def gradient(params):
        def loss(params):
            return jnp.mean(jnp.sin(model.apply({"params": params}, tokens)[0]))

        return jax.grad(loss)(params)

    expected = gradient(params_of(DEEP))
    got = unstack_params(DEEP, gradient(stack_params(DEEP, params_of(DEEP))))
    assert got.keys() == expected.keys()
    for path, wanted in flax.traverse_util.flatten_dict(expected).items():
        actual = functools.reduce(dict.__getitem__, path, got)
        assert relative_error(actual, wanted) <= 2e-5, path


@pytest.mark.slow
def test_gradients_of_low_rank_additions_to_packed_layers_equal_those_one_by_one():
    tokens = random_tokens(DEEP, (2, 5))
    base = packed_params()

    def low_rank(leaf):
        if not isinstance(leaf, QuantizedTensor):
            return None
        features, inputs = leaf.shape
        key = jax.random.key(features + inputs)
        draw = functools.partial(jax.random.normal, key)
        return {"a": 0.1 * draw((2, inputs)), "b": 0.1 * draw((features, 2))}

    def is_packed(leaf):
        return isinstance(leaf, QuantizedTensor)

    def loss(adapter, base):
        def add(leaf, low):
            return leaf if low is None else LoRAWeight(leaf, low["a"], low["b"], scale=0.5)

        params = jax.tree.map(add, base, adapter, is_leaf=is_packed)
        return jnp.mean(jnp.sin(Griffin(DEEP).apply({"params": params}, tokens)[0]))

    gradient = jax.jit(jax.grad(loss))
    adapter = jax.tree.map(low_rank, base, is_leaf=is_packed)
    expected = gradient(adapter, base)
    got = gradient(stack_params(DEEP, adapter), stack_params(DEEP, base))
    errors = jax.tree.map(relative_error, unstack_params(DEEP, got), expected)
    assert max(jax.tree.leaves(errors)) <= 2e-5
    assert len(jax.tree.leaves(errors)) > 20


def test_parameters_and_state_come_back_as_they_were():
    params = packed_params(double_quant=True)
    stacked = stack_params(DEEP, params)
    assert is_stacked(stacked) and not is_stacked(params)
    assert set(stacked) == {"embedder", "groups", "blocks_4", "final_norm"}
    assert_same_tree(unstack_params(DEEP, stacked), params)
    _, state = read(DEEP, params)
    assert_same_tree(unstack_state(stack_state(DEEP, state)), state)


def test_stacking_can_empty_the_tree_that_it_is_given():
    given = jax.tree.map(lambda x: x, params_of(DEEP))
    assert_same_tree(stack_params(DEEP, given, consume=True), stack_params(DEEP, params_of(DEEP)))
    assert not given


def test_a_stacked_state_goes_on_as_one():
    params, tokens = stack_params(DEEP, params_of(DEEP)), random_tokens(DEEP, (3, 5))
    state = init_state(DEEP, 3)
    logits, after = forward(DEEP)(params, tokens, stack_state(DEEP, state))
    assert isinstance(after, StackedState)
    expected, expected_after = forward(DEEP)(params, tokens, state)
    np.testing.assert_array_equal(logits, expected)
    assert_same_state(unstack_state(after), expected_after, bound=0)


def test_dropout_of_stacked_layers_differs_by_layer_and_is_drawn_from_the_key():
    model = Griffin(DEEP, dropout=0.5)
    params, tokens = stack_params(DEEP, params_of(DEEP)), random_tokens(DEEP, (1, 5))

    @jax.jit
    def apply(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply({"params": params}, tokens, rngs=rngs)[0]

    np.testing.assert_array_equal(apply(0), apply(0))
    assert np.any(np.asarray(apply(0)) != np.asarray(apply(1)))


def test_layers_of_several_kinds_are_refused_by_name():
    params = packed_params() | {"blocks_2": params_of(DEEP)["blocks_2"]}
    with pytest.raises(ValueError, match=r"blocks_0 to blocks_2/.*/weight is not of one kind"):
        stack_params(DEEP, params)


@pytest.mark.slow
@pytest.mark.parametrize("window", [8, None])
def test_texts_of_stacked_layers_can_be_forked_and_go_on(window):
    config = DEEP.replace(attention_window=window)
    params = params_of(config)
    prompts, more = [[3, 5, 9], [7] * 11], [[1, 2], [4], [6, 6, 6]]

    def write(params):
        with Engine(config, params, seconds=None, fill_first=True) as engine:
            begun = [engine.submit(prompt, 4, keep_context=True) for prompt in prompts]
            engine.run()
            contexts = [begun[i].context() for i in (1, 0, 1)]
            forks = [
                engine.submit(prompt, 4, context=context)
                for prompt, context in zip(more, contexts, strict=True)
            ]
            return [request.result() for request in forks]

    stacked, expected = write(stack_params(config, params)), write(params)
    assert [s.tokens for s in stacked] == [s.tokens for s in expected]
