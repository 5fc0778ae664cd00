"""Settings of transformers' `generate` in a model's own generation_config.json."""

import json

import pytest

from griffin_jax.inference.generation_settings import check_generation_file

PLAIN = {"bos_token_id": 2, "eos_token_id": [1, 107], "pad_token_id": 0, "max_length": 8192}


def check(folder, text):
    path = folder / "generation_config.json"
    path.write_text(text)
    check_generation_file(path)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1},
        {"num_beams": 1, "length_penalty": 1.0, "early_stopping": False, "typical_p": 1.0},
        {"bad_words_ids": None, "suppress_tokens": [], "forced_eos_token_id": None},
        {"_from_model_config": True, "transformers_version": "5.17.0", "cache_implementation": "hybrid"},
        {"chat_format": "chatml", "of_tomorrow": 5},
    ],
)  # fmt: skip
def test_what_changes_no_text_passes(tmp_path, more):
    check_generation_file(tmp_path / "generation_config.json")
    check(tmp_path, json.dumps(PLAIN | more))


@pytest.mark.parametrize(
    "more",
    [
        {"num_beams": 4},
        {"suppress_tokens": [3]},
        {"forced_bos_token_id": 5},
        {"no_repeat_ngram_size": 3},
        {"min_new_tokens": 5},
        {"guidance_scale": 1.5},
        {"stop_strings": ["\n"]},
    ],
)
def test_what_changes_texts_and_is_not_supported_is_named(tmp_path, more):
    (name,) = more
    with pytest.raises(ValueError, match=rf"generation_config\.json: {name}="):
        check(tmp_path, json.dumps(PLAIN | more))


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[]"])
def test_a_damaged_file_is_named(tmp_path, text):
    with pytest.raises(ValueError, match=r"generation_config\.json"):
        check(tmp_path, text)
