"""The fields that clients send, with their types and bounds, as OpenAI and those after it have them."""

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any

from griffin_jax import inputs
from griffin_jax.fields import check_value, check_values, field, nearest, shown
from griffin_jax.inference import SamplingConfig
from griffin_jax.inference.decode import MAX_STOP_IDS
from griffin_jax.serving.errors import RequestError, invalid, unknown_model

MOST_STOPS = 64
MOST_BIASES = 1024
_TEXT_OR_TEXTS = {
    "anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string"}}]
}
_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
# The schemas of fields that are of several types.
SHAPES: dict[str, Any] = {
    "prompt": {
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}, "minItems": 1},
            _TOKENS | {"minItems": 1},
            {"type": "array", "items": _TOKENS | {"minItems": 1}, "minItems": 1},
        ]
    },
    "messages": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["role", "content"],
            "properties": {
                "role": {"enum": ["system", "developer", "user", "assistant"]},
                "content": {
                    "anyOf": [
                        {"type": "string"},
                        {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["type", "text"],
                                "properties": {
                                    "type": {"enum": ["text"]},
                                    "text": {"type": "string"},
                                },
                            },
                        },
                    ]
                },
            },
        },
    },
    "stop": _TEXT_OR_TEXTS,
    "tokens": _TOKENS,
    "logit_bias": {"type": "object", "additionalProperties": {"type": "number"}},
}
# What changes nothing here: who asks, where it is kept, and how others would serve it.
_WITHOUT_EFFECT = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
)
# What would change the answer and cannot be done, with the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """The fields of every request for text."""

    model: str | None = None
    n: int = field(1, at_least=1)
    max_tokens: int | None = field(None, at_least=0)
    min_tokens: int = field(0, at_least=0)
    stream: bool = False
    stream_options: dict | None = None
    stop: Any = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = field(None, at_least=-(2**63), below=2**64)
    temperature: float = field(1.0, at_least=0, at_most=100)
    top_p: float = field(1.0, at_least=0, at_most=1)
    top_k: int = field(0, at_least=-1)
    min_p: float = field(0.0, at_least=0, at_most=1)
    presence_penalty: float = field(0.0, at_least=-2, at_most=2)
    frequency_penalty: float = field(0.0, at_least=-2, at_most=2)
    repetition_penalty: float = field(1.0, above=0, at_most=100)
    logit_bias: dict | None = None
    response_format: dict | None = None
    regex: str | None = field(None, filled=True)
    grammar: str | None = field(None, filled=True)
    context: str | None = field(None, filled=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion(Generation):
    """The body of POST /v1/completions."""

    prompt: Any = ""
    best_of: int | None = field(None, at_least=1)
    logprobs: int | None = field(None, at_least=0, at_most=20)
    echo: bool = False
    add_special_tokens: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatCompletion(Generation):
    """The body of POST /v1/chat/completions."""

    messages: Any
    max_completion_tokens: int | None = field(None, at_least=0)
    logprobs: bool = False
    top_logprobs: int | None = field(None, at_least=0, at_most=20)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenize:
    """The body of POST /tokenize."""

    model: str | None = None
    prompt: str | None = None
    messages: Any = None
    add_special_tokens: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detokenize:
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewContext:
    """The body of POST /v1/contexts."""

    model: str | None = None
    text: str | None = field(None, filled=True)
    tokens: Any = None
    context: str | None = field(None, filled=True)


def parse(schema: type, values: Mapping[str, Any], served: str) -> Any:
    """Returns the body of a request as an instance of its schema.

    Args:
      schema: One of the dataclasses above.
      values: The fields that the client sent.
      served: The name of the model that is here.

    Raises:
      RequestError: a field is unknown, wrong, or asks for what cannot be done.
    """
    known = {entry.name for entry in dataclasses.fields(schema)}
    kept = {}
    for name, value in values.items():
        if name in known:
            kept[name] = value
        elif name in _REFUSED and issubclass(schema, Generation):
            if value not in _REFUSED[name]:
                raise invalid(f"{name} is not supported by this server; leave it out", name)
        elif name not in _WITHOUT_EFFECT or not issubclass(schema, Generation):
            hint = nearest(name, sorted(known))
            raise invalid(f"unknown field {name[:80]!r}; {hint}", name[:80], "unknown_field")
    try:
        body = schema(**check_values(schema, kept, ""))
    except ValueError as error:
        raise _of_field(error, known) from None
    if body.model is not None and body.model != served:
        raise unknown_model(body.model, served)
    return body


def _of_field(error: ValueError, known: set[str]) -> RequestError:
    """Returns the error of a value, with the field that its message begins with."""
    message = str(error)
    name = message.split(" ")[0].split("[")[0].split(".")[0]
    return invalid(message, name if name in known else None)


def sampling_of(body: Generation) -> SamplingConfig:
    """Returns how the tokens of a request are drawn.

    Raises:
      RequestError: logit_bias is wrong, or a value is one that cannot be counted with.
    """
    top_k = body.top_k if body.top_k > 0 else None
    bias = _bias_of(body.logit_bias or {}) or None
    try:
        return SamplingConfig(
            temperature=body.temperature,
            top_k=1 if body.top_p == 0 else top_k,
            top_p=body.top_p if 0 < body.top_p < 1 else None,
            min_p=body.min_p or None,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            repetition_penalty=None if body.repetition_penalty == 1 else body.repetition_penalty,
            logit_bias=bias,
        )
    except ValueError as error:
        names = {entry.name for entry in dataclasses.fields(body)}
        raise _of_field(error, names) from None


def _bias_of(values: Mapping[Any, Any]) -> dict[int, float]:
    if len(values) > MOST_BIASES:
        raise invalid(f"logit_bias names {len(values)} tokens; {MOST_BIASES} are the most")
    bias = {}
    for name, value in values.items():
        token = str(name)
        if not (token.isascii() and token.isdecimal() and len(token) < 10):
            message = f"logit_bias: {shown(name)} is no token id; its keys are ids as text"
            raise invalid(message, "logit_bias")
        try:
            value = check_value(f"logit_bias[{token}]", value, float, at_least=-100, at_most=100)
        except ValueError as error:
            raise invalid(str(error), "logit_bias") from None
        bias[int(token)] = value
    return bias


def stop_of(body: Generation) -> tuple[str, ...]:
    """Returns the strings that end a text.

    Raises:
      RequestError: they are no texts, or too many.
    """
    try:
        stop = inputs.check_stop(body.stop)
    except ValueError as error:
        raise invalid(str(error), "stop") from None
    if len(stop) > MOST_STOPS:
        raise invalid(f"stop holds {len(stop)} strings; {MOST_STOPS} are the most", "stop")
    for string in stop:
        check_unicode(string, "stop")
    return stop


def stop_ids_of(body: Generation, own: tuple[int, ...], vocab_size: int) -> tuple[int, ...]:
    """Returns the tokens that end a text: the model's own unless they are ignored, and those asked for.

    Raises:
      RequestError: they are no tokens, or too many.
    """
    if body.stop_token_ids:
        check_tokens(list(body.stop_token_ids), vocab_size, "stop_token_ids")
    ids = tuple(dict.fromkeys((*(() if body.ignore_eos else own), *body.stop_token_ids)))
    if len(ids) > MAX_STOP_IDS:
        raise invalid(
            f"stop_token_ids holds {len(body.stop_token_ids)} tokens; with the model's own there "
            f"may be {MAX_STOP_IDS}",
            "stop_token_ids",
        )
    return ids


def seed_of(body: Generation) -> int:
    """Returns the seed of a request, drawn where it has none."""
    return secrets.randbits(32) if body.seed is None else body.seed % 2**32


def include_usage(body: Generation) -> bool:
    """Returns whether a stream ends with what was used.

    Raises:
      RequestError: stream_options is wrong, or there is no stream.
    """
    options = {
        name: value for name, value in (body.stream_options or {}).items() if value is not None
    }
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options go with stream=true", "stream_options")
    known = {"include_usage", "include_obfuscation", "continuous_usage_stats"}
    for name, value in options.items():
        if name not in known or not isinstance(value, bool):
            raise invalid(
                f"stream_options has no {shown(name)} of {shown(value)}; there is include_usage, "
                "true or false",
                "stream_options",
            )
    if options.get("continuous_usage_stats"):
        raise invalid("stream_options.continuous_usage_stats is not supported", "stream_options")
    return options.get("include_usage", False)


def prompts_of(value: Any) -> list[str | list[int]]:
    """Returns the prompts of a completion: a text, texts, token ids, or lists of token ids.

    Raises:
      RequestError: it is none of these, or none is there.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise invalid(
            f"prompt must be text, a list of texts, token ids or a list of those, got {shown(value)}",
            "prompt",
        )
    if all(isinstance(part, str) for part in value):
        return value
    if all(isinstance(part, list) for part in value):
        return value
    return [value]


def check_tokens(tokens: Any, vocab_size: int, name: str) -> list[int]:
    """Returns the token ids of one text.

    Raises:
      RequestError: they are none.
    """
    try:
        inputs.check_tokens(tokens, vocab_size, name)
    except ValueError as error:
        raise invalid(str(error), name.partition("[")[0]) from None
    return tokens


def check_unicode(text: str, name: str) -> str:
    """Returns the text, where it is one.

    Raises:
      RequestError: it holds a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise invalid(f"{name} holds a lone surrogate, which is no character", name) from None
    return text
