import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from griffin_jax.checkpoints import (
    CheckpointError,
    load_checkpoint,
    open_checkpoint,
    save_checkpoint,
)
from griffin_jax.checkpoints.huggingface import tensor_name
from griffin_jax.checkpoints.shards import INDEX_FILE, WEIGHTS_FILE
from tests.checkpoints.tiny_model import (
    CONFIG,
    assert_same_tree,
    edit_json,
    logits,
    one_line_error,
    random_params,
    save_tiny,
)


def edit_tensors(folder, change):
    tensors = safetensors.numpy.load_file(folder / WEIGHTS_FILE)
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("embedder/embedding", "model.embed_tokens.weight"),
        ("lm_head/weight", "lm_head.weight"),
        ("final_norm/scale", "model.final_norm.weight"),
        ("blocks_0/temporal_pre_norm/scale", "model.layers.0.temporal_pre_norm.weight"),
        (
            "blocks_12/recurrent_block/linear_x/bias",
            "model.layers.12.temporal_block.linear_x.bias",
        ),
        (
            "blocks_1/recurrent_block/rg_lru/a_param",
            "model.layers.1.temporal_block.rg_lru.recurrent_param",
        ),
        (
            "blocks_1/recurrent_block/rg_lru/input_gate/weight",
            "model.layers.1.temporal_block.rg_lru.input_gate_weight",
        ),
        (
            "blocks_1/recurrent_block/rg_lru/a_gate/bias",
            "model.layers.1.temporal_block.rg_lru.recurrent_gate_bias",
        ),
        (
            "blocks_2/attention_block/q_proj/weight",
            "model.layers.2.temporal_block.q_proj.weight",
        ),
        ("blocks_2/mlp_block/up_proj/weight", "model.layers.2.mlp_block.up_proj.weight"),
    ],
)
def test_leaves_have_the_names_of_transformers(path, name):
    assert tensor_name(path, "recurrent_gemma") == name


def test_a_sharded_folder_loads_like_a_whole_one(tmp_path):
    params = save_tiny(tmp_path / "model", max_shard_size=30_000)
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 3
    assert_same_tree(load_checkpoint(tmp_path / "model").params, params)


def test_leaves_come_in_the_models_order(tmp_path):
    config = CONFIG.replace(num_layers=11, tie_embeddings=False)
    save_tiny(tmp_path / "model", config)
    tops = [path.split("/")[0] for path, _ in open_checkpoint(tmp_path / "model").leaves()]
    blocks = [f"blocks_{i}" for i in range(11)]
    assert list(dict.fromkeys(tops)) == ["embedder", *blocks, "final_norm", "lm_head"]


def test_a_missing_tensor_is_named(tmp_path):
    save_tiny(tmp_path / "model")
    edit_tensors(tmp_path / "model", lambda t: t.pop("model.final_norm.weight"))
    assert "tensor model.final_norm.weight is missing" in one_line_error(tmp_path / "model")


def test_an_unexpected_tensor_is_named(tmp_path):
    save_tiny(tmp_path / "model")
    extra = {"model.layers.9.extra": np.zeros(2, np.float32)}
    edit_tensors(tmp_path / "model", lambda t: t.update(extra))
    assert "tensor model.layers.9.extra is unexpected" in one_line_error(tmp_path / "model")


@pytest.mark.parametrize(
    "name", ["model.final_norm.weight", "model.layers.0.temporal_block.conv_1d.weight"]
)
def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(tmp_path, name):
    save_tiny(tmp_path / "model")
    edit_tensors(tmp_path / "model", lambda t: t.update({name: np.zeros((2, 3), np.float32)}))
    message = one_line_error(tmp_path / "model")
    assert name in message
    assert "(2, 3)" in message
    assert "(64,)" in message or "(96, 1, 4)" in message


def test_a_missing_shard_is_named(tmp_path):
    save_tiny(tmp_path / "model", max_shard_size=30_000)
    shard = sorted((tmp_path / "model").glob("model-*.safetensors"))[-1]
    shard.unlink()
    assert f"{shard.name} is missing" in one_line_error(tmp_path / "model")


def test_a_folder_with_a_config_alone_has_no_weights(tmp_path):
    save_tiny(tmp_path / "model")
    (tmp_path / "model" / WEIGHTS_FILE).unlink()
    assert "has no weights" in one_line_error(tmp_path / "model")


def test_the_head_of_an_untied_model_must_be_there(tmp_path):
    save_tiny(tmp_path / "model")
    edit_json(tmp_path / "model" / "config.json", tie_word_embeddings=False)
    assert "tensor lm_head.weight is missing" in one_line_error(tmp_path / "model")


def test_a_tied_model_may_store_its_head_twice_but_not_another_one(tmp_path):
    params = save_tiny(tmp_path / "model")
    embedding = np.asarray(params["embedder"]["embedding"])
    edit_tensors(tmp_path / "model", lambda t: t.update({"lm_head.weight": embedding}))
    assert_same_tree(load_checkpoint(tmp_path / "model").params, params)
    edit_tensors(tmp_path / "model", lambda t: t.update({"lm_head.weight": embedding + 1}))
    message = one_line_error(tmp_path / "model")
    assert "lm_head.weight differs from model.embed_tokens.weight" in message


def test_a_config_that_the_format_cannot_express_is_refused_and_leaves_nothing(tmp_path):
    config = CONFIG.replace(scale_embeddings=False, logits_soft_cap=None)
    with pytest.raises(CheckpointError, match=r"scale_embeddings=False.*logits_soft_cap=None"):
        save_checkpoint(tmp_path / "model", config, random_params(config), format="huggingface")
    assert not list(tmp_path.iterdir())


def save_with_transformers(folder, *, tied=True, dtype="float32", **kwargs):
    """A tiny random model written by transformers, no weight of which is zero."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.RecurrentGemmaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=2 * 96,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=1,
        lru_width=64,
        attention_window_size=32,
        tie_word_embeddings=tied,
    )
    model = transformers.RecurrentGemmaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(folder, **kwargs)
    return model


def transformers_logits(model, tokens, lengths):
    import torch

    tokens = torch.tensor(tokens)
    mask = (torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None]).long()
    with torch.no_grad():
        return model(tokens, attention_mask=mask, use_cache=False).logits.float().numpy()


def assert_same_logits(actual, expected, lengths):
    assert np.ptp(expected) > 1  # else any two would be the same
    for row, length in enumerate(lengths):
        difference = np.abs(actual[row, :length] - expected[row, :length]).max()
        assert difference <= 1e-4 * np.abs(expected[row, :length]).max()


LENGTHS = (32, 17, 5)
TOKENS = np.random.default_rng(0).integers(3, 128, (3, 32))


@pytest.mark.parity
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_of_transformers_gives_the_same_logits(tmp_path, tied):
    model = save_with_transformers(tmp_path, tied=tied, max_shard_size="100KB")
    assert (tmp_path / INDEX_FILE).is_file()
    loaded = load_checkpoint(tmp_path)
    assert loaded.config.mlp_width == 96
    assert loaded.config.tie_embeddings is tied
    ours = logits(loaded.config, loaded.params, TOKENS, lengths=jnp.array(LENGTHS))
    assert_same_logits(ours, transformers_logits(model, TOKENS, LENGTHS), LENGTHS)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_16_bit_folder_of_transformers_is_read_exactly(tmp_path, dtype):
    model = save_with_transformers(tmp_path, dtype=dtype)
    params = load_checkpoint(tmp_path).params
    state = model.state_dict()
    for path, leaf in [
        ("model.embed_tokens.weight", params["embedder"]["embedding"]),
        (
            "model.layers.1.temporal_block.rg_lru.recurrent_gate_weight",
            params["blocks_1"]["recurrent_block"]["rg_lru"]["a_gate"]["weight"],
        ),
    ]:
        assert leaf.dtype == dtype
        np.testing.assert_array_equal(np.float32(leaf), state[path].float().numpy())


@pytest.mark.parity
@pytest.mark.parametrize("max_shard_size", [30_000, 10**9])
def test_transformers_loads_what_is_saved(tmp_path, max_shard_size):
    import torch
    import transformers

    config = CONFIG.replace(recurrence_width=64)
    params = random_params(config)
    save_checkpoint(
        tmp_path / "model", config, params, format="huggingface", max_shard_size=max_shard_size
    )
    model, info = transformers.RecurrentGemmaForCausalLM.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(info.values()), info
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == 1
    ours = logits(config, params, TOKENS, lengths=jnp.array(LENGTHS))
    assert_same_logits(ours, transformers_logits(model.eval(), TOKENS, LENGTHS), LENGTHS)


@pytest.mark.parity
def test_transformers_loads_saved_bfloat16_bit_for_bit(tmp_path):
    import torch
    import transformers

    config = CONFIG.replace(tie_embeddings=False)
    params = random_params(config, jnp.bfloat16)
    save_checkpoint(tmp_path / "model", config, params, format="huggingface")
    model = transformers.RecurrentGemmaForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    np.testing.assert_array_equal(
        model.lm_head.weight.detach().float().numpy(), np.float32(params["lm_head"]["weight"])
    )


def test_config_json_says_what_transformers_asks_for(tmp_path):
    save_tiny(tmp_path / "model")
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    assert values["model_type"] == "recurrent_gemma"
    assert values["intermediate_size"] == 2 * CONFIG.mlp_width
    assert values["architectures"] == ["RecurrentGemmaForCausalLM"]
    assert values["dtype"] == "float32"
