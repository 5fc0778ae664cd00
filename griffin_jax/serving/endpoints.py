"""The small endpoints: what is served, how it is, tokens and texts."""

from typing import Any

import jax
import jax.numpy as jnp
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

import griffin_jax
from griffin_jax.inference.row_states import fresh_row, nbytes
from griffin_jax.language_model import LanguageModel
from griffin_jax.serving import protocol
from griffin_jax.serving.bodies import read_json
from griffin_jax.serving.chat import encode_messages, messages_of
from griffin_jax.serving.errors import invalid, unknown_model
from griffin_jax.serving.exchange import json_response
from griffin_jax.serving.openapi import document
from griffin_jax.serving.protocol import Detokenize, Tokenize
from griffin_jax.serving.service import Service
from griffin_jax.tokenizer import Tokenizer


async def models(request: Request) -> Response:
    """GET /v1/models."""
    return json_response({"object": "list", "data": [_model(request.app.state.service)]})


async def model(request: Request) -> Response:
    """GET /v1/models/NAME."""
    service: Service = request.app.state.service
    name = request.path_params["name"]
    if name != service.name:
        raise unknown_model(name, service.name)
    return json_response(_model(service))


def _model(service: Service) -> dict[str, Any]:
    lm = service.lm
    state = jax.eval_shape(lambda: fresh_row(lm.model, lm.params, 1))
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "griffin_jax",
        "max_model_len": service.settings.most_prompt_tokens + service.settings.most_new_tokens,
        "vocab_size": lm.config.vocab_size,
        "attention_window": lm.config.attention_window,
        "state_bytes": nbytes(state),
        "transformer_bytes_per_token": _bytes_per_token(lm),
        "has_chat": _has_chat(lm.tokenizer),
    }


def _bytes_per_token(lm: LanguageModel) -> int:
    """Returns what keys and values of a token would take, were every layer one of global attention."""
    config = lm.config
    size = config.head_size or 0  # which is there once the config is made
    return config.num_layers * 2 * config.num_kv_heads * size * jnp.dtype(lm.dtype).itemsize


def _has_chat(tokenizer: Tokenizer) -> bool:
    """Returns whether the model has a form for conversations."""
    try:
        tokenizer.format_chat([{"role": "user", "content": "a"}])
    except (ValueError, ImportError):
        return False
    return True


async def tokenize(request: Request) -> Response:
    """POST /tokenize."""
    service: Service = request.app.state.service
    values = await read_json(request, service.settings)
    body = protocol.parse(Tokenize, values, service.name)
    if (body.prompt is None) == (body.messages is None):
        raise invalid("give prompt or messages, one of the two", "prompt")
    tokens = await run_in_threadpool(_encode, service.lm.tokenizer, body)
    return json_response(
        {
            "count": len(tokens),
            "max_model_len": service.settings.most_prompt_tokens + service.settings.most_new_tokens,
            "tokens": tokens,
            "token_strs": [service.lm.tokenizer.token_name(token) for token in tokens],
        }
    )


def _encode(tokenizer, body):
    if body.messages is not None:
        return encode_messages(tokenizer, messages_of(body.messages), goes_on=False)
    text = protocol.check_unicode(body.prompt, "prompt")
    return tokenizer.encode(text, bos=None if body.add_special_tokens else False)


async def detokenize(request: Request) -> Response:
    """POST /detokenize."""
    service: Service = request.app.state.service
    values = await read_json(request, service.settings)
    body = protocol.parse(Detokenize, values, service.name)
    tokens = body.tokens
    if tokens != []:
        protocol.check_tokens(tokens, service.lm.config.vocab_size, "tokens")
    text = await run_in_threadpool(service.lm.tokenizer.decode, tokens)
    return json_response({"prompt": text})


async def health(request: Request) -> Response:
    """GET /health."""
    status, body = request.app.state.service.health()
    return json_response(body, status)


async def metrics(request: Request) -> Response:
    """GET /metrics."""
    page = await run_in_threadpool(request.app.state.service.metrics.page)
    return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")


async def version(request: Request) -> Response:
    """GET /version."""
    return json_response({"version": griffin_jax.__version__, "jax": jax.__version__})


async def openapi(request: Request) -> Response:
    """GET /openapi.json."""
    return json_response(document(request.app.state.service))


async def tokenizer_info(request: Request) -> Response:
    """GET /tokenizer_info, by which lm-evaluation-harness has a tokenizer over HTTP."""
    tokenizer = request.app.state.service.lm.tokenizer
    names = {
        "bos_token": tokenizer.bos_id,
        "eos_token": tokenizer.eos_id,
        "pad_token": tokenizer.pad_id,
    }
    return json_response({name: tokenizer.token_name(token) for name, token in names.items()})
