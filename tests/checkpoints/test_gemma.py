"""Gemma 1 in Hugging Face folders: the same blocks under other names."""

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import pytest

import griffin_jax
from griffin_jax.checkpoints import CheckpointError, load_checkpoint, pack_leaf, save_checkpoint
from griffin_jax.checkpoints.huggingface import tensor_name
from griffin_jax.checkpoints.huggingface_config import config_from_json, config_to_json, model_type
from griffin_jax.checkpoints.tree import flat_abstract_params
from griffin_jax.config import GEMMA_2B, GEMMA_7B, MQA_7B, RECURRENTGEMMA_2B
from griffin_jax.quantization import QuantizationConfig, QuantizedTensor
from tests.checkpoints.test_packed import (
    TOKENS,
    assert_close,
    bitsandbytes_config,
    pack,
    transformers_logits,
    unpack,
)
from tests.checkpoints.tiny_model import assert_same_tree, logits, one_line_error, random_params

CONFIG = GEMMA_7B.replace(
    vocab_size=128,
    width=64,
    mlp_width=128,
    num_layers=2,
    num_heads=4,
    recurrence_width=None,
    head_size=32,
    num_kv_heads=4,
)
CONFIGS = {"one key head": CONFIG.replace(num_kv_heads=1), "as many as query heads": CONFIG}
# The fields of google/gemma-7b's config.json that describe the model.
PUBLISHED_7B = {
    "attention_bias": False,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": None,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "model_type": "gemma",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 16,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 256000,
}
PUBLISHED_2B = PUBLISHED_7B | {
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
}


def test_the_published_configs_are_the_presets():
    assert config_from_json(PUBLISHED_7B) == GEMMA_7B
    assert config_from_json(PUBLISHED_2B) == GEMMA_2B


@pytest.mark.parametrize(("config", "billions"), [(GEMMA_2B, 2.506), (GEMMA_7B, 8.538)])
def test_the_presets_have_as_many_parameters_as_published(config, billions):
    sizes = [leaf.size for leaf in flat_abstract_params(config).values()]
    assert round(sum(sizes) / 1e9, 3) == billions


@pytest.mark.parametrize(
    "config",
    [
        GEMMA_2B,
        GEMMA_7B.replace(
            tie_embeddings=False, rope_base=7.0, norm_eps=1e-5, recurrence_width=5, conv_width=9
        ),
    ],
)
def test_every_field_the_format_has_survives(config):
    read = config_from_json(config_to_json(config))
    assert read.replace(recurrence_width=config.recurrence_width, conv_width=4) == config.replace(
        conv_width=4
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_fraction": 0.5},
        {"projection_bias": True},
        {"logits_soft_cap": 30.0},
        {"scale_embeddings": False},
        {"round_embedding_scale": True},
        {"attention_bias": True},
    ],
)
def test_a_field_the_format_has_not_is_named(changes):
    (field,) = changes.items()
    with pytest.raises(CheckpointError, match=f"{field[0]}={field[1]}"):
        config_to_json(CONFIG.replace(**changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_activation": "silu"}, "hidden_act 'silu'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ({"rope_scaling": {"factor": 2}}, "rope_scaling"),
        (
            {"head_dim": 0},
            "head_dim: head_size must be a whole number of at least 1, or None, got 0",
        ),
    ],
)
def test_a_variant_the_model_has_not_is_one_line(changes, words):
    with pytest.raises(CheckpointError) as caught:
        config_from_json(PUBLISHED_7B | changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unbounded_attention_alone_makes_a_gemma():
    assert model_type(MQA_7B) == "gemma"
    assert model_type(RECURRENTGEMMA_2B) == "recurrent_gemma"
    assert model_type(CONFIG.replace(attention_window=8)) == "recurrent_gemma"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("embedder/embedding", "model.embed_tokens.weight"),
        ("final_norm/scale", "model.norm.weight"),
        ("blocks_10/temporal_pre_norm/scale", "model.layers.10.input_layernorm.weight"),
        ("blocks_1/channel_pre_norm/scale", "model.layers.1.post_attention_layernorm.weight"),
        ("blocks_1/attention_block/q_proj/weight", "model.layers.1.self_attn.q_proj.weight"),
        ("blocks_1/mlp_block/up_proj/weight", "model.layers.1.mlp.up_proj.weight"),
        ("lm_head/weight", "lm_head.weight"),
    ],
)
def test_leaves_have_the_names_of_transformers(path, name):
    assert tensor_name(path, "gemma") == name


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_saving_and_loading_changes_nothing(tmp_path, config):
    params = pack(random_params(config, jnp.bfloat16), quant_type="nf4", double_quant=True)
    for name, tree in (("whole", unpack(params)), ("packed", params)):
        save_checkpoint(tmp_path / name, config, tree, format="huggingface", max_shard_size=40_000)
        loaded = load_checkpoint(tmp_path / name)
        assert loaded.config == config
        assert_same_tree(loaded.params, tree)


def test_a_missing_tensor_is_named_as_transformers_has_it(tmp_path):
    leaves = random_params(CONFIG)
    save_checkpoint(tmp_path / "model", CONFIG, leaves, format="huggingface")
    config = tmp_path / "model" / "config.json"
    config.write_text(
        config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    )
    assert "model.layers.2.input_layernorm.weight" in one_line_error(tmp_path / "model")


def test_layers_are_skipped_by_the_names_of_gemma():
    weight = np.ones((64, 64), np.float32)
    skipping = QuantizationConfig(llm_int8_skip_modules=("self_attn.q_proj",))
    path = "blocks_1/attention_block/q_proj/weight"
    assert pack_leaf(path, weight, skipping, architecture="gemma") is weight
    assert isinstance(
        pack_leaf(path, weight, skipping, architecture="recurrent_gemma"), QuantizedTensor
    )
    lm = griffin_jax.quantize(griffin_jax.LanguageModel(CONFIG, random_params(CONFIG)), skipping)
    packed = {
        path
        for path, leaf in flax.traverse_util.flatten_dict(lm.params, sep="/").items()
        if isinstance(leaf, QuantizedTensor)
    }
    assert len(packed) == 2 * 6


def test_what_a_packed_folder_leaves_whole_is_listed_by_the_names_of_gemma(tmp_path):
    params = pack(random_params(CONFIG), pattern=r"up_proj/weight$", quant_type="nf4")
    save_checkpoint(tmp_path / "model", CONFIG, params, format="huggingface")
    loaded = load_checkpoint(tmp_path / "model")
    assert "model.layers.1.self_attn.q_proj" in loaded.quantization["llm_int8_skip_modules"]


def open_with_transformers(folder, **kwargs):
    import torch
    import transformers

    model, info = transformers.GemmaForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, device_map="cpu", **kwargs
    )
    assert not any(info.values()), info
    return model


@pytest.mark.parity
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_transformers_loads_what_is_saved(tmp_path, config):
    params = random_params(config)
    save_checkpoint(tmp_path / "model", config, params, format="huggingface")
    theirs = transformers_logits(open_with_transformers(tmp_path / "model"), TOKENS)
    assert_close(logits(config, params, TOKENS), theirs, 1e-4)


@pytest.mark.parity
def test_transformers_loads_saved_bfloat16_bit_for_bit(tmp_path):
    import torch
    import transformers

    params = random_params(CONFIG, jnp.bfloat16)
    save_checkpoint(tmp_path / "model", CONFIG, params, format="huggingface")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    np.testing.assert_array_equal(
        model.model.layers[1].self_attn.k_proj.weight.detach().float().numpy(),
        np.float32(params["blocks_1"]["attention_block"]["k_proj"]["weight"]),
    )


@pytest.mark.parity
@pytest.mark.parametrize("double_quant", [False, True])
def test_a_folder_quantized_by_transformers_is_read(tmp_path, double_quant):
    save_checkpoint(tmp_path / "whole", CONFIG, random_params(CONFIG), format="huggingface")
    model = open_with_transformers(
        tmp_path / "whole", quantization_config=bitsandbytes_config("nf4", double_quant)
    )
    model.save_pretrained(tmp_path / "packed")
    loaded = load_checkpoint(tmp_path / "packed")
    weight = loaded.params["blocks_1"]["mlp_block"]["up_proj"]["weight"]
    assert (weight.quant_type, weight.double_quantized) == ("nf4", double_quant)
    assert_close(logits(CONFIG, loaded.params, TOKENS), transformers_logits(model, TOKENS), 1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("double_quant", [False, True])
def test_transformers_reads_a_packed_folder_of_ours(tmp_path, double_quant):
    params = pack(random_params(CONFIG), quant_type="nf4", double_quant=double_quant)
    settings = bitsandbytes_config("nf4", double_quant).to_dict()
    save_checkpoint(tmp_path / "model", CONFIG, params, format="huggingface", quantization=settings)
    theirs = transformers_logits(open_with_transformers(tmp_path / "model"), TOKENS)
    assert_close(theirs, logits(CONFIG, params, TOKENS), 1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("skipped", [None, ("q_proj",), ("lm_head", "up_proj"), ()])
def test_transformers_reads_what_is_packed_under_any_list_of_skipped_layers(
    tmp_path, tied, skipped
):
    """Such a list replaces transformers' own, which keeps the head whole."""
    config = CONFIG.replace(tie_embeddings=tied)
    settings = QuantizationConfig(bnb_4bit_compute_dtype="float32", llm_int8_skip_modules=skipped)
    lm = griffin_jax.quantize(griffin_jax.LanguageModel(config, random_params(config)), settings)
    griffin_jax.save(lm, tmp_path / "model", format="huggingface")
    theirs = transformers_logits(open_with_transformers(tmp_path / "model"), TOKENS)
    assert_close(theirs, logits(config, lm.params, TOKENS), 1e-4)
