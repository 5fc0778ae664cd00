"""The wire around a text: JSON, server-sent events, a client that leaves."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from griffin_jax.serving.errors import RequestError, failed

T = TypeVar("T")
_END = b"data: [DONE]\n\n"
_JSON = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


def json_bytes(value: Any) -> bytes:
    """Returns a value as JSON, in ASCII, which holds whatever a client has sent; and no NaN."""
    return _JSON.encode(value).encode()


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Returns an answer in JSON."""
    return Response(json_bytes(value), status, dict(headers or {}), "application/json")


def error_response(error: RequestError) -> Response:
    """Returns OpenAI's error object as an answer."""
    return json_response(error.body(), error.status, error.headers)


def event_stream(events: AsyncIterator[dict[str, Any]]) -> Response:
    """Returns objects as server-sent events, as they come, and `[DONE]`; an error is the last of them."""

    async def lines():
        try:
            async for event in events:
                yield b"data: " + json_bytes(event) + b"\n\n"
        except RequestError as error:
            yield b"data: " + json_bytes(error.body()) + b"\n\n"
        except Exception as error:
            yield b"data: " + json_bytes(failed(type(error).__name__).body()) + b"\n\n"
            raise
        yield _END

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(), headers=headers, media_type="text/event-stream")


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Returns what some work comes to, which ends early where the client leaves meanwhile.

    Args:
      request: Whose body has been read.
      work: Cancelled when the client leaves.

    Raises:
      ClientLeft: it did.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft
    finally:
        for task in (working, watching):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
