import pytest

from griffin_jax.checkpoints import CheckpointError
from griffin_jax.checkpoints.huggingface_config import config_from_json, config_to_json
from griffin_jax.config import RECURRENTGEMMA_2B, RECURRENTGEMMA_9B, TINY

# The fields of google/recurrentgemma-2b's config.json that describe the model.
PUBLISHED_2B = {
    "attention_bias": False,
    "attention_window_size": 2048,
    "block_types": ["recurrent", "recurrent", "attention"],
    "conv1d_width": 4,
    "embeddings_scale_by_sqrt_dim": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2560,
    "intermediate_size": 15360,
    "logits_soft_cap": 30.0,
    "lru_width": 2560,
    "model_type": "recurrent_gemma",
    "num_attention_heads": 10,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 256000,
}


def test_the_published_config_is_the_preset():
    assert config_from_json(PUBLISHED_2B) == RECURRENTGEMMA_2B


def test_keys_left_out_have_their_published_values():
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")
    short = {
        key: PUBLISHED_2B[key]
        for key in (*needed, "num_hidden_layers", "num_key_value_heads", "model_type")
    }
    assert config_from_json(short) == RECURRENTGEMMA_2B
    assert config_from_json(PUBLISHED_2B | {"lru_width": None}) == RECURRENTGEMMA_2B


def test_key_value_heads_left_out_are_as_many_as_query_heads():
    assert config_from_json(PUBLISHED_2B | {"num_key_value_heads": None}).num_kv_heads == 10


def test_rope_parameters_count_before_the_older_keys():
    rope = {"rope_theta": 500.0, "partial_rotary_factor": 0.25, "rope_type": "default"}
    config = config_from_json(PUBLISHED_2B | {"rope_parameters": rope})
    assert (config.rope_base, config.rope_fraction) == (500.0, 0.25)
    older = config_from_json(PUBLISHED_2B | {"rope_theta": 7.0, "partial_rotary_factor": 1.0})
    assert (older.rope_base, older.rope_fraction) == (7.0, 1.0)


@pytest.mark.parametrize(
    "config",
    [
        RECURRENTGEMMA_9B,
        TINY.replace(
            num_kv_heads=2,
            window_includes_query=True,
            rope_base=77.0,
            rope_fraction=0.25,
            norm_eps=1e-5,
            attention_bias=True,
            tie_embeddings=False,
            conv_width=3,
            logits_soft_cap=7.0,
            block_pattern=("attention", "recurrent"),
        ),
    ],
)
def test_every_field_the_format_has_survives(config):
    assert config_from_json(config_to_json(config)) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"projection_bias": False},
        {"head_size": 32},
        {"scale_embeddings": False},
        {"attention_window": None},
        {"logits_soft_cap": None},
    ],
)
def test_a_field_the_format_has_not_is_named(changes):
    (field,) = changes.items()
    with pytest.raises(CheckpointError, match=f"{field[0]}={field[1]}"):
        config_to_json(TINY.replace(**changes))


def test_a_block_the_format_has_not_is_named():
    with pytest.raises(CheckpointError, match=r"no block_pattern=\('lru', 'attention'\)"):
        config_to_json(TINY.replace(block_pattern=("lru", "attention")))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "model_type 'llama' is an unknown architecture"),
        ({"hidden_activation": "silu"}, "hidden_activation 'silu'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn'"),
        ({"rope_scaling": {"factor": 2}}, "rope_scaling"),
        ({"embeddings_scale_by_sqrt_dim": False}, "embeddings_scale_by_sqrt_dim False"),
        ({"intermediate_size": 7}, "intermediate_size 7 must be even"),
        ({"num_attention_heads": 7}, "num_heads 7"),
        (
            {"block_types": ["mamba"]},
            "block_types names 'mamba'; there are recurrent and attention",
        ),
        ({"vocab_size": "many"}, "vocab_size must be a whole number of at least 1, got 'many'"),
        (
            {"hidden_size": 2560.0},
            "hidden_size: width must be a whole number of at least 1, got 2560.0",
        ),
        ({"num_key_value_heads": -1}, "num_kv_heads must be a whole number of at least 1, got -1"),
        ({"intermediate_size": "wide"}, "wrong type"),
        ({"rope_parameters": 5}, "rope_parameters must be a JSON object, got 5"),
    ],
)
def test_a_variant_the_model_has_not_is_one_line(changes, words):
    with pytest.raises(CheckpointError) as caught:
        config_from_json(PUBLISHED_2B | changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named():
    values = {key: value for key, value in PUBLISHED_2B.items() if key != "hidden_size"}
    with pytest.raises(CheckpointError, match="hidden_size is missing"):
        config_from_json(values)
