"""/v1/contexts: states as values over the API."""

import os
from collections.abc import Generator, Iterator, Sequence
from typing import Any, BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from griffin_jax.inference import Context
from griffin_jax.serving import protocol
from griffin_jax.serving.bodies import pieces, read_json
from griffin_jax.serving.context_store import NAME, facts
from griffin_jax.serving.errors import invalid, unknown_context
from griffin_jax.serving.exchange import json_response, unless_gone
from griffin_jax.serving.protocol import NewContext
from griffin_jax.serving.records import Record
from griffin_jax.serving.service import Service, owner_of


async def create(request: Request) -> Response:
    """Reads a text once, and keeps its context."""
    service: Service = request.app.state.service
    service.check_ready()
    values = await read_json(request, service.settings)
    body = await run_in_threadpool(protocol.parse, NewContext, values, service.name)
    before = await service.context(body.context, request)
    tokens = await run_in_threadpool(_tokens_of, service, body, before)
    context = await unless_gone(request, _read(service, service.record(request), tokens, before))
    kept = await service.contexts.save(owner_of(request), context)
    return json_response(facts(kept, context))


async def index(request: Request) -> Response:
    """Lists the contexts of whoever asks."""
    service: Service = request.app.state.service
    kept = service.contexts.listed(owner_of(request))
    return json_response({"object": "list", "data": [facts(one) for one in kept]})


async def export(request: Request) -> Response:
    """Sends the file of a context."""
    service: Service = request.app.state.service
    kept = service.contexts.find(owner_of(request), request.path_params["name"])
    try:
        file = await run_in_threadpool(kept.path.open, "rb")
    except FileNotFoundError:  # it was deleted since
        raise unknown_context(kept.name) from None
    # The file that was opened is sent to its end, whoever deletes or replaces it meanwhile.
    headers = {
        "Content-Length": str(os.fstat(file.fileno()).st_size),
        "Content-Disposition": f'attachment; filename="{kept.name}.safetensors"',
    }
    return StreamingResponse(_sent(file), headers=headers, media_type="application/octet-stream")


def _sent(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(2**18):
            yield piece


async def put(request: Request) -> Response:
    """Takes the file of a context."""
    service: Service = request.app.state.service
    service.check_ready()
    name, owner = request.path_params["name"], owner_of(request)
    if not NAME.fullmatch(name):
        raise invalid(f"a context's name is up to 64 letters, digits, - and _, got {name!r:.100}")
    body = pieces(request, service.settings, service.contexts.room(owner, besides=name))
    kept, context = await service.contexts.put(owner, name, body)
    return json_response(facts(kept, context))


async def delete(request: Request) -> Response:
    """Forgets a context."""
    service: Service = request.app.state.service
    name = request.path_params["name"]
    await service.contexts.delete(owner_of(request), name)
    return json_response({"id": name, "object": "context.deleted", "deleted": True})


def _tokens_of(service: Service, body: NewContext, before: Context | None) -> list[int]:
    if (body.text is None) == (body.tokens is None):
        raise invalid("give text or tokens, one of the two", "text")
    if body.text is None:
        tokens = protocol.check_tokens(body.tokens, service.lm.config.vocab_size, "tokens")
    else:
        text = protocol.check_unicode(body.text, "text")
        tokens = service.lm.tokenizer.encode(text, bos=None if before is None else False)
    count = len(tokens) + (0 if before is None else len(before.tokens))
    if count > service.settings.most_prompt_tokens:
        raise invalid(
            f"the text has {count} tokens; {service.settings.most_prompt_tokens} are the most here",
            "text",
            "context_length_exceeded",
        )
    return tokens


async def _read(
    service: Service, record: Record, tokens: Sequence[int], before: Context | None
) -> Context:
    wanted: dict[str, Any] = {
        "prompt": tokens,
        "max_new_tokens": 0,
        "context": before,
        "keep_context": True,
        "deadline": service.settings.most_seconds,
    }
    with service.worker.places(1):
        batch = record.batch = await service.worker.begin(lambda: [wanted], pieces=False)
    (sample,) = await batch.results()
    if sample.finish_reason == "deadline":
        raise invalid("the text was not read within the time that a request has here", "text")

    def take() -> Generator[None, None, Context]:
        return batch.texts[0].request.context()
        yield

    return await service.worker.run(take())
