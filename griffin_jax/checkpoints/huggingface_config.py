"""Between `GriffinConfig` and the config.json of Hugging Face's `recurrent_gemma` and `gemma`."""

from typing import Any

from griffin_jax.config import ATTENTION, GriffinConfig
from griffin_jax.errors import CheckpointError

CONFIG_FILE = "config.json"
RECURRENT_GEMMA = "recurrent_gemma"
GEMMA = "gemma"
_ACTIVATION = "gelu_pytorch_tanh"
# What has no effect on a model without recurrent blocks.
_RECURRENT_FIELDS = ("recurrence_width", "conv_width", "block_pattern", "window_includes_query")
_KINDS = ("recurrent", "attention")
# What a config.json calls the fields of `GriffinConfig` that it calls otherwise.
_FILE_NAMES = {
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "block_pattern": "block_types",
    "recurrence_width": "lru_width",
    "head_size": "head_dim",
    "attention_window": "attention_window_size",
    "conv_width": "conv1d_width",
    "tie_embeddings": "tie_word_embeddings",
    "rope_base": "rope_theta",
    "rope_fraction": "partial_rotary_factor",
    "norm_eps": "rms_norm_eps",
}


def model_type(config: GriffinConfig) -> str:
    """Returns the architecture of transformers that a model would be stored as."""
    unbounded = config.attention_window is None and set(config.block_types) == {ATTENTION}
    return GEMMA if unbounded else RECURRENT_GEMMA


def config_from_json(values: dict[str, Any]) -> GriffinConfig:
    """Returns the shape that a config.json describes, with transformers' defaults for what it
    leaves out.

    Of `recurrent_gemma`, `intermediate_size` is twice the MLP width and `block_types` is cycled over
    the layers. The attention window has the authors' meaning (`GriffinConfig.window_includes_query`
    is False) unless a `window_includes_query` of griffin_jax's own making says otherwise. Of
    `gemma`, an activation called "gelu" is its tanh approximation: files from before the name was
    corrected have it.

    Raises:
      CheckpointError: another architecture, a missing key, or a variant the model has not.
    """
    readers = {RECURRENT_GEMMA: _read_recurrent_gemma, GEMMA: _read_gemma}
    if str(values.get("model_type")) not in readers:
        raise CheckpointError(
            f"model_type {values.get('model_type')!r} is an unknown architecture; "
            f"expected {' or '.join(map(repr, readers))}"
        )
    rope = values.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"rope_parameters must be a JSON object, got {rope!r}")
    _expect("rope_type", rope.get("rope_type", "default"), "default")
    _expect("rope_scaling", values.get("rope_scaling"), None)
    try:
        return readers[values["model_type"]](values, rope)
    except KeyError as error:
        raise CheckpointError(f"{error.args[0]} is missing") from error
    except TypeError as error:
        raise CheckpointError(f"a value has the wrong type: {error}") from error
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(_by_file_name(str(error))) from error


def _read_recurrent_gemma(values, rope):
    _expect("hidden_activation", values.get("hidden_activation", _ACTIVATION), _ACTIVATION)
    _expect("embeddings_scale_by_sqrt_dim", values.get("embeddings_scale_by_sqrt_dim", True), True)
    width, heads = values["hidden_size"], values["num_attention_heads"]
    mlp_width, odd = divmod(values["intermediate_size"], 2)
    if odd:
        raise CheckpointError(
            f"intermediate_size {values['intermediate_size']} must be even; it "
            "is twice the MLP width"
        )
    pattern = values.get("block_types") or ("recurrent", "recurrent", "attention")
    if odd := [kind for kind in pattern if kind not in _KINDS]:
        raise CheckpointError(f"block_types names {odd[0]!r}; there are {' and '.join(_KINDS)}")
    return GriffinConfig(
        vocab_size=values["vocab_size"],
        width=width,
        mlp_width=mlp_width,
        num_layers=values["num_hidden_layers"],
        num_heads=heads,
        block_pattern=tuple(pattern),
        recurrence_width=values.get("lru_width"),
        num_kv_heads=values.get("num_key_value_heads") or heads,
        attention_window=values.get("attention_window_size", 2048),
        window_includes_query=values.get("window_includes_query", False),
        conv_width=values.get("conv1d_width", 4),
        logits_soft_cap=values.get("logits_soft_cap", 30.0),
        tie_embeddings=values.get("tie_word_embeddings", True),
        rope_base=rope.get("rope_theta", values.get("rope_theta", 10_000.0)),
        rope_fraction=rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 0.5)),
        norm_eps=values.get("rms_norm_eps", 1e-6),
        attention_bias=values.get("attention_bias", False),
    )


def _read_gemma(values, rope):
    activation = values.get("hidden_activation") or values.get("hidden_act", _ACTIVATION)
    _expect("hidden_act", _ACTIVATION if activation == "gelu" else activation, _ACTIVATION)
    _expect("attention_bias", values.get("attention_bias", False), False)
    bidirectional = values.get("use_bidirectional_attention") or False
    _expect("use_bidirectional_attention", bidirectional, False)
    heads = values["num_attention_heads"]
    return GriffinConfig(
        vocab_size=values["vocab_size"],
        width=values["hidden_size"],
        mlp_width=values["intermediate_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=heads,
        block_pattern=(ATTENTION,),
        head_size=values.get("head_dim", 256),
        num_kv_heads=values.get("num_key_value_heads") or heads,
        attention_window=None,
        round_embedding_scale=False,
        logits_soft_cap=None,
        tie_embeddings=values.get("tie_word_embeddings", True),
        rope_base=rope.get("rope_theta", values.get("rope_theta", 10_000.0)),
        rope_fraction=1.0,
        norm_eps=values.get("rms_norm_eps", 1e-6),
        projection_bias=False,
    )


def config_to_json(config: GriffinConfig) -> dict[str, Any]:
    """Returns the config.json of a model, without the dtype of its weights.

    Raises:
      CheckpointError: the format has no way to say one of the config's values.
    """
    if set(config.block_pattern) - set(_KINDS):
        raise CheckpointError(
            f"the Hugging Face format has no block_pattern={config.block_pattern}; save with "
            "format='orbax'"
        )
    values = _WRITERS[model_type(config)](config)
    ignored = _RECURRENT_FIELDS if values["model_type"] == GEMMA else ()
    read = config_from_json(values).to_dict()
    lost = [
        f"{name}={value}"
        for name, value in config.to_dict().items()
        if value != read[name] and name not in ignored
    ]
    if values["model_type"] == RECURRENT_GEMMA:
        lost += [
            f"{name}=None"
            for name in ("attention_window", "logits_soft_cap")
            if getattr(config, name) is None
        ]
    if lost:
        raise CheckpointError(
            f"the Hugging Face format has no {', '.join(lost)}; save with format='orbax'"
        )
    return values


def _write_recurrent_gemma(config):
    values = _write_shared(config) | {
        "architectures": ["RecurrentGemmaForCausalLM"],
        "attention_bias": config.attention_bias,
        "attention_window_size": config.attention_window,
        "block_types": list(config.block_pattern),
        "conv1d_width": config.conv_width,
        "hidden_activation": _ACTIVATION,
        "intermediate_size": 2 * config.mlp_width,
        "logits_soft_cap": config.logits_soft_cap,
        "lru_width": config.recurrence_width,
        "model_type": RECURRENT_GEMMA,
        "rope_parameters": {
            "partial_rotary_factor": config.rope_fraction,
            "rope_theta": config.rope_base,
            "rope_type": "default",
        },
    }
    if config.window_includes_query:
        values["window_includes_query"] = True
    return values


def _write_gemma(config):
    return _write_shared(config) | {
        "architectures": ["GemmaForCausalLM"],
        "attention_bias": False,
        "head_dim": config.head_size,
        "hidden_act": _ACTIVATION,
        "intermediate_size": config.mlp_width,
        "model_type": GEMMA,
        "rope_parameters": {"rope_theta": config.rope_base, "rope_type": "default"},
    }


def _write_shared(config):
    return {
        "attention_dropout": 0.0,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "vocab_size": config.vocab_size,
    }


def _by_file_name(message: str) -> str:
    """Returns the message about a field of `GriffinConfig`, behind what a config.json calls that
    field.
    """
    field = message.split(" ", 1)[0]
    return f"{_FILE_NAMES[field]}: {message}" if field in _FILE_NAMES else message


_WRITERS = {RECURRENT_GEMMA: _write_recurrent_gemma, GEMMA: _write_gemma}


def _expect(name: str, value: Any, expected: Any) -> None:
    if value != expected:
        raise CheckpointError(f"{name} {value!r} is not supported, only {expected!r}")
