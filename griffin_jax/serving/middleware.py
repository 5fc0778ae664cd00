"""A layer around every endpoint: who asks, what is logged and counted, how errors are told."""

import hmac
import logging
import re
import uuid

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from griffin_jax.fields import shown
from griffin_jax.serving.context_store import owner_of_key
from griffin_jax.serving.errors import INVALID, RequestError, failed, no_key
from griffin_jax.serving.exchange import ClientLeft, error_response
from griffin_jax.serving.records import Record, requests_log
from griffin_jax.serving.service import Service

log = logging.getLogger(__name__)

_CLIENTS_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LEFT = 499  # nginx's status of a client that has gone; nobody gets it
# What needs no key: the page, which asks for one, and what watches over servers.
_OPEN = ("/", "/health", "/version", "/openapi.json", "/metrics", "/favicon.ico")
_SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Around:
    """An ASGI application around the endpoints."""

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        key = self._key(request)
        name = request.headers.get("x-request-id", "")
        name = name if _CLIENTS_ID.fullmatch(name) else uuid.uuid4().hex
        # A server without keys does not tell its clients apart: some send a key all the same.
        scope["griffin.owner"] = owner_of_key(key if self._service.keys else None)
        record = scope["griffin.record"] = Record(name, scope["griffin.owner"])
        status = None

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", [])
                message["headers"] += [(b"x-request-id", name.encode()), *_SECURITY]
            await send(message)

        try:
            if not self._may_pass(scope, key):
                raise no_key()
            await self._app(scope, receive, sending)
        except Exception as error:
            if isinstance(error, ClientLeft) or (isinstance(error, OSError) and status is not None):
                status = _LEFT  # nobody takes what is sent
                return
            refused = _as_refusal(error, scope)
            record.error = refused.code or refused.kind
            self._service.metrics.count_error(record.error)
            if refused.status >= 500 and not isinstance(error, RequestError):
                log.exception("an endpoint failed", extra={"fields": {"id": name}})
            if status is None:
                await error_response(refused)(scope, receive, sending)
        finally:
            if record.batch is not None:  # whoever asked may have left
                record.batch.cancel()
            if scope["path"] not in ("/health", "/metrics"):
                fields = record.fields(scope["method"], scope["path"], status or _LEFT)
                requests_log.info("request", extra={"fields": fields})

    def _key(self, request: Request) -> str | None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return key.strip() if scheme.lower() == "bearer" else None

    def _may_pass(self, scope: Scope, key: str | None) -> bool:
        keys, path = self._service.keys, scope["path"]
        if not keys or path in _OPEN or path.startswith("/static/") or scope["method"] == "OPTIONS":
            return True
        given = (key or "").encode()
        # All of them, so that the time tells nothing.
        return sum(hmac.compare_digest(given, known.encode()) for known in keys) > 0


def _as_refusal(error: Exception, scope: Scope) -> RequestError:
    if isinstance(error, RequestError):
        return error
    if isinstance(error, HTTPException):
        path = shown(scope["path"])
        allowed = (error.headers or {}).get("Allow", "others")
        of_status = {
            404: ("not_found", f"there is no {path}; /openapi.json lists what there is"),
            405: ("method_not_allowed", f"{path} takes {allowed}, not {shown(scope['method'])}"),
        }
        code, message = of_status.get(error.status_code, (None, str(error.detail)))
        return RequestError(
            error.status_code, message, kind=INVALID, code=code, headers=error.headers
        )
    return failed(f"the server failed: {type(error).__name__}")
