"""Random weights, and bytes and FLOPs counted from shapes."""

import jax
import numpy as np
import pytest

from griffin_jax.benchmarks import counting, memory
from griffin_jax.benchmarks.subject import Subject, count_parameters
from griffin_jax.checkpoints.random_weights import abstract_weights, random_params
from griffin_jax.config import GEMMA_7B, RECURRENTGEMMA_9B, TINY
from griffin_jax.models import abstract_params, init_state
from griffin_jax.quantization import FORMATS, PACKINGS
from griffin_jax.weight import is_weight
from tests.tiny import OTHER_CHOICES

SMALL = TINY.replace(num_layers=3)


def test_random_weights_have_the_models_tree_and_the_sizes_of_fresh_ones():
    params = random_params(SMALL, "float32")
    expected = abstract_params(SMALL)
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, expected)
    weight = np.asarray(params["blocks_0"]["mlp_block"]["up_proj"]["weight"])
    assert 0.9 < weight.std() * weight.shape[-1] ** 0.5 < 1.1
    other = params["blocks_0"]["mlp_block"]["gate_proj"]["weight"]
    assert not np.array_equal(weight, other)


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
def test_random_packed_weights_are_of_the_kind_and_size_that_packing_makes(packing):
    params = random_params(SMALL, "bfloat16", packing)
    packed = [x for x in jax.tree.leaves(params, is_leaf=is_weight) if is_weight(x)]
    assert len(packed) == 2 * 6 + 7  # two recurrent layers and one of attention
    leaf = params["blocks_0"]["mlp_block"]["up_proj"]["weight"]
    assert FORMATS[packing.quant_type].settings_of(leaf) == packing
    values = np.asarray(leaf.dequantize("float32"))
    assert 0.8 < values.std() * values.shape[-1] ** 0.5 < 1.3
    assert memory.tree_bytes(params) == memory.tree_bytes(
        abstract_weights(SMALL, "bfloat16", packing)
    )


def test_the_published_shapes_weigh_what_is_known_of_them():
    assert count_parameters(RECURRENTGEMMA_9B) == 8_579_977_216
    packed = Subject.parse("recurrentgemma-9b:nf4").weight_bytes()
    # 7,474,249,728 weights in half a byte and a float32 per 64; the rest in bfloat16.
    linear = 7_474_249_728
    codes = 16 * 4 * (26 * 6 + 12 * 7)
    assert packed == linear // 2 + linear // 16 + 2 * (8_579_977_216 - linear) + codes
    # A byte each, and a float32 for each row of the layers' weights.
    rows = 26 * (3 * 4096) + 12 * (2 * 4096 + 2 * 256) + 38 * (2 * 12_288 + 4096)
    eight = Subject.parse("recurrentgemma-9b:int8:bfloat16").weight_bytes()
    assert eight == linear + 4 * rows + 2 * (8_579_977_216 - linear)
    assert Subject.parse("recurrentgemma-9b:bfloat16").weight_bytes() == 2 * 8_579_977_216


@pytest.mark.parametrize("config", [TINY, OTHER_CHOICES])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_full_state_weighs_what_is_counted(config, dtype):
    itemsize = 4 if dtype == "float32" else 2
    state = jax.eval_shape(lambda: init_state(config, 1, dtype))
    counted = counting.cache_bytes(config, 10_000, itemsize)
    assert counted == memory.tree_bytes(state.blocks)


def test_under_an_unbounded_window_the_cache_grows_with_the_text():
    # 28 layers, keys and values of 16 heads of 256 in bfloat16.
    assert counting.cache_bytes(GEMMA_7B, 1000) == 1000 * 28 * 2 * 16 * 256 * 2
    assert counting.cache_bytes(RECURRENTGEMMA_9B, 4096) == counting.cache_bytes(
        RECURRENTGEMMA_9B, 200_000
    )


def test_an_untied_embedding_is_not_read_by_a_step_nor_a_head_by_a_chunk():
    tied, untied = SMALL, SMALL.replace(tie_embeddings=False)
    table = SMALL.vocab_size * SMALL.width * 4
    weights = memory.tree_bytes(abstract_weights(tied, "float32"))
    assert counting.weight_bytes_per_step(tied, weights, "float32") == weights
    assert counting.weight_bytes_per_step(untied, weights + table, "float32") == weights
    assert counting.weight_bytes_per_chunk(tied, weights, "float32") == weights - table
    assert counting.weight_bytes_per_chunk(untied, weights + table, "float32") == weights - table


@pytest.mark.parametrize("config", [TINY, TINY.replace(attention_window=None)])
def test_prefill_costs_what_its_steps_cost_without_their_heads(config):
    tokens = 100
    steps = sum(counting.decode_flops(config, 1, position) for position in range(tokens))
    heads = tokens * 2 * config.vocab_size * config.width
    assert counting.prefill_flops(config, 3, tokens) == pytest.approx(3 * (steps - heads), rel=1e-3)


def test_a_prompt_of_4096_is_61_teraflop_on_the_9b():
    assert counting.prefill_flops(RECURRENTGEMMA_9B, 1, 4096) / 1e12 == pytest.approx(62, abs=1)
