"""The bodies of requests: JSON within bounds, and nothing that JSON does not have."""

import asyncio
import collections
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import ClientDisconnect, Request

from griffin_jax.serving.errors import RequestError, invalid, too_large
from griffin_jax.serving.settings import ServerSettings


async def read_json(request: Request, settings: ServerSettings) -> dict[str, Any]:
    """Returns the object that a request's body holds; fields that are null are left out.

    Raises:
      RequestError: the body is too large, too slow, compressed, no JSON, or no object.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A page of another site can send a browser here with any type but this one.
    if kind != "application/json":
        raise invalid(
            f"the body must be JSON with the header Content-Type: application/json, got {kind!r:.80}"
        )
    if (coding := request.headers.get("content-encoding", "identity")).lower() != "identity":
        message = (
            f"the body's Content-Encoding, {coding!r:.80}, is not supported; leave it as it is"
        )
        raise RequestError(415, message, code="unsupported_encoding")
    body = b"".join([piece async for piece in pieces(request, settings, settings.most_body_bytes)])
    try:
        values = json.loads(
            body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_object
        )
    except UnicodeDecodeError as error:
        raise invalid(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise invalid("the body is nested too deeply") from None
    except ValueError as error:  # also of numbers of thousands of digits
        raise invalid(f"the body is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise invalid("the body must be a JSON object, with the fields of the request")
    return {name: value for name, value in values.items() if value is not None}


async def pieces(request: Request, settings: ServerSettings, most: int) -> AsyncIterator[bytes]:
    """Yields the body of a request as it comes, `most` bytes at most.

    Raises:
      RequestError: it is larger, or takes too long, or ends too early.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > most):
        raise too_large(f"the body has more than {most:,} bytes, which is the bound here", "body")
    size = 0
    stream = request.stream().__aiter__()
    try:
        async with asyncio.timeout(settings.body_seconds):
            while (piece := await anext(stream, None)) is not None:
                size += len(piece)
                if size > most:
                    raise too_large(
                        f"the body has more than {most:,} bytes, which is the bound here", "body"
                    )
                yield piece
    except TimeoutError:
        raise RequestError(
            408,
            f"the body did not come within {settings.body_seconds:g} seconds",
            code="body_timeout",
            headers={"Connection": "close"},
        ) from None
    except ClientDisconnect:
        raise invalid("the client left before its body was complete") from None


def _refuse_constant(name):
    raise ValueError(f"{name} is no JSON")


def _object(pairs):
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise ValueError(f"the field {twice[:80]!r} is there twice")
    return values
