"""What is packed, leaf by leaf, and how little it takes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.checkpoints import CheckpointError, load_checkpoint, packing, save_checkpoint
from griffin_jax.checkpoints.huggingface import is_linear
from griffin_jax.checkpoints.packing import squared_errors
from griffin_jax.checkpoints.tree import flat_abstract_params
from griffin_jax.config import RECURRENTGEMMA_9B
from griffin_jax.quantization import QuantizationConfig, abstract, dequantize, quantize
from tests.checkpoints.tiny_model import CONFIG, random_params, save_tiny

NF4 = QuantizationConfig(bnb_4bit_quant_type="nf4")
UP = "blocks_1/mlp_block/up_proj/weight"
pack_leaf = functools.partial(packing.pack_leaf, architecture="recurrent_gemma")
WEIGHT = np.random.default_rng(0).standard_normal((8, 128), np.float32)


def test_a_9b_model_in_4_bits_takes_at_most_6_7_gb():
    packed = {
        path: abstract(leaf.shape, "bfloat16") if is_linear(path) else leaf
        for path, leaf in flat_abstract_params(RECURRENTGEMMA_9B).items()
    }
    linear = sum(leaf.size for path, leaf in packed.items() if is_linear(path))
    assert linear == 7_474_249_728
    # Outside of packed weights everything is in bfloat16; the embedding is the head, too.
    total = sum(leaf.nbytes if is_linear(path) else 2 * leaf.size for path, leaf in packed.items())
    assert 6.3e9 < total <= 6.7e9


def test_linear_weights_are_packed_and_nothing_else_is():
    packed = set()
    for path, struct in flat_abstract_params(CONFIG.replace(tie_embeddings=False)).items():
        leaf = jnp.ones(struct.shape)
        if pack_leaf(path, leaf, NF4) is not leaf:
            packed.add(path.split("/", 1)[1])
    assert packed == {
        *(f"recurrent_block/linear_{name}/weight" for name in ("x", "y", "out")),
        *(f"attention_block/{name}_proj/weight" for name in "qkvo"),
        *(f"mlp_block/{name}_proj/weight" for name in ("gate", "up", "down")),
    }


def test_skipped_modules_stay_whole():
    skipping = QuantizationConfig(llm_int8_skip_modules=("up_proj",))
    assert pack_leaf(UP, WEIGHT, skipping) is WEIGHT
    # The list replaces the default, which is the head.
    assert pack_leaf("lm_head/weight", WEIGHT, skipping) is not WEIGHT


def test_a_packed_leaf_stays_as_it_is_or_is_refused_by_name():
    packed = quantize(WEIGHT, "nf4")
    assert pack_leaf(UP, packed, NF4) is packed
    for settings, block_size in (
        (QuantizationConfig(bnb_4bit_quant_type="fp4"), 64),
        (QuantizationConfig(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True), 64),
        (QuantizationConfig(bnb_4bit_quant_type="nf4", llm_int8_skip_modules=("up_proj",)), 64),
        (NF4, 128),
    ):
        with pytest.raises(
            CheckpointError, match=r"up\.weight is packed already, as nf4"
        ) as caught:
            pack_leaf(UP, packed, settings, block_size=block_size, name="up.weight")
        assert "\n" not in str(caught.value)


def test_squared_errors_are_those_of_the_dequantized_values():
    tensor = quantize(WEIGHT, "fp4", double_quant=True)
    error = np.float64(WEIGHT) - np.float64(dequantize(tensor))
    expected = [np.sum(error**2), np.sum(np.float64(WEIGHT) ** 2)]
    np.testing.assert_allclose(squared_errors(WEIGHT, tensor), expected, rtol=1e-5)


@pytest.mark.parametrize("format", ["huggingface", "orbax"])
def test_packing_while_loading_equals_packing_what_is_loaded(tmp_path, format):
    params = save_tiny(tmp_path / "model", format=format)
    loaded = load_checkpoint(tmp_path / "model", dtype="bfloat16", quantization=NF4)
    assert loaded.quantization == NF4.to_dict()
    expected = quantize(params["blocks_1"]["mlp_block"]["up_proj"]["weight"], "nf4")
    found = loaded.params["blocks_1"]["mlp_block"]["up_proj"]["weight"]
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert loaded.params["embedder"]["embedding"].dtype == jnp.bfloat16


def test_a_weight_that_is_not_finite_is_named_while_it_is_packed(tmp_path):
    params = random_params(CONFIG)
    block = params["blocks_1"]["mlp_block"]["up_proj"]
    block["weight"] = block["weight"].at[3, 5].set(jnp.nan)
    save_checkpoint(tmp_path / "model", CONFIG, params, format="huggingface")
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp_block\.up_proj\.weight holds NaN"):
        load_checkpoint(tmp_path / "model", quantization=NF4)
