"""Settings of transformers' `generate`: those that sampling obeys, and those that change nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from griffin_jax.foreign_settings import Rule, is_off, obeyed, only, read_settings, without_effect
from griffin_jax.inference.sampling import FIELDS, SamplingConfig
from griffin_jax.text_files import read_json


def not_above(limit: float) -> Rule:
    """Returns the rule of a setting that is off up to a limit."""

    def rule(value):
        return isinstance(value, int | float) and not isinstance(value, bool) and value <= limit

    return rule


_RULES: dict[str, Rule] = {
    "do_sample": obeyed,
    **dict.fromkeys(FIELDS, obeyed),
    # Off at these values.
    "num_beams": only(1),
    "num_beam_groups": only(1),
    "num_return_sequences": only(1),
    "typical_p": only(1),
    "epsilon_cutoff": only(0),
    "eta_cutoff": only(0),
    "encoder_repetition_penalty": only(1),
    "no_repeat_ngram_size": not_above(0),
    "encoder_no_repeat_ngram_size": not_above(0),
    "min_length": not_above(0),
    "min_new_tokens": not_above(0),
    "guidance_scale": only(1),
    "penalty_alpha": only(0),
    "diversity_penalty": only(0),
    # These act with several beams, or in an encoder, only.
    "length_penalty": without_effect,
    "early_stopping": without_effect,
    "decoder_start_token_id": without_effect,
    # These change how fast a text comes, what comes beside it, or nothing.
    "renormalize_logits": without_effect,
    "remove_invalid_values": without_effect,
    "use_cache": without_effect,
    "cache_implementation": without_effect,
    "cache_config": without_effect,
    "max_cache_len": without_effect,
    "prefill_chunk_size": without_effect,
    "low_memory": without_effect,
    "compile_config": without_effect,
    "disable_compile": without_effect,
    "continuous_batching_config": without_effect,
    "return_dict_in_generate": without_effect,
    "output_attentions": without_effect,
    "output_hidden_states": without_effect,
    "output_scores": without_effect,
    "output_logits": without_effect,
    "is_assistant": without_effect,
    "num_assistant_tokens": without_effect,
    "num_assistant_tokens_schedule": without_effect,
    "assistant_confidence_threshold": without_effect,
    "assistant_early_exit": without_effect,
    "assistant_lookbehind": without_effect,
    "assistant_ensemble_weight": without_effect,
    "target_lookbehind": without_effect,
    "speculation_type": without_effect,
    "prompt_lookup_num_tokens": without_effect,
    "max_matching_ngram_size": without_effect,
    "use_mtp": without_effect,
    "pad_token_id": without_effect,
    "transformers_version": without_effect,
    "_from_model_config": without_effect,
    "_commit_hash": without_effect,
    "top_h": is_off,
    "dola_layers": is_off,
    "bad_words_ids": is_off,
    "constraints": is_off,
    "force_words_ids": is_off,
    "forced_bos_token_id": is_off,
    "forced_eos_token_id": is_off,
    "sequence_bias": is_off,
    "suppress_tokens": is_off,
    "begin_suppress_tokens": is_off,
    "exponential_decay_length_penalty": is_off,
    "stop_strings": is_off,
    "max_time": is_off,
    "token_healing": is_off,
    "watermarking_config": is_off,
}
# In a model's own file; how long a text gets is for the caller to say.
_OF_FILES: dict[str, Rule] = dict.fromkeys(
    ("bos_token_id", "eos_token_id", "max_length", "max_new_tokens"), without_effect
)


def check_generation_file(path: Path) -> None:
    """Checks a model's generation_config.json, if there is one, for what sampling cannot do.

    Its `eos_token_id` ends texts, see `Tokenizer.stop_ids`. Temperature, `top_k` and the like are
    defaults of transformers' `generate`; here the caller's arguments are what counts.

    Raises:
      ValueError: a setting changes texts in a way that is not supported, such as `num_beams` of 4.
    """
    if path.is_file():
        rules = {**_RULES, **_OF_FILES}
        read_settings(read_json(path), rules, str(path), unknown=without_effect)


def read_generation_settings(
    values: Mapping[str, Any], what: str, more: Mapping[str, Rule]
) -> SamplingConfig:
    """Returns how to draw tokens as transformers' `generate` would with these settings.

    Without `do_sample` the most likely token follows. With it, temperature is 1 where nothing else
    is said; a `top_k` of 0 and a `top_p` of 1 or more are off.

    Args:
      values: The settings by name.
      what: Names where they stand in errors.
      more: Rules of names that have another meaning there.

    Raises:
      ValueError: a setting changes the text and is not supported, or is out of its range.
    """
    values = read_settings(values, {**_RULES, **more}, what)
    drawing = {name: values[name] for name in FIELDS if name in values}
    if not values.get("do_sample", False):
        drawing["temperature"] = 0.0
    drawing.setdefault("temperature", 1.0)
    if drawing.get("top_k") == 0:
        del drawing["top_k"]
    if isinstance(top_p := drawing.get("top_p"), int | float) and top_p >= 1:
        del drawing["top_p"]
    try:
        return SamplingConfig(**drawing)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
