"""The errors that a client is told when a request cannot be served: OpenAI's error object."""

from collections.abc import Mapping
from typing import Any

INVALID = "invalid_request_error"


class RequestError(Exception):
    """A request that is not served as it was sent.

    Attributes:
      status: The status of HTTP.
      message: One line that says what was wrong and what would be right.
      kind: OpenAI's `type`.
      param: The field that is wrong; None where it is none.
      code: OpenAI's `code`, for programs.
      headers: To go with the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Returns the error object."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


def invalid(message: str, param: str | None = None, code: str | None = None) -> RequestError:
    """Returns the error of a request that is wrong in itself."""
    return RequestError(400, message, param=param, code=code)


def unknown_model(name: str, served: str) -> RequestError:
    """Returns the error of a request for a model that is not here."""
    message = f"the model {name[:200]!r} does not exist here; this server has {served!r}"
    return RequestError(404, message, param="model", code="model_not_found")


def unknown_context(name: str) -> RequestError:
    """Returns the error of a request for a context that is not here."""
    message = f"there is no context {name[:200]!r}; POST /v1/contexts makes one"
    return RequestError(404, message, param="context", code="context_not_found")


def too_large(message: str, code: str) -> RequestError:
    """Returns the error of a request that passes a bound on bytes."""
    return RequestError(413, message, code=code)


def no_key() -> RequestError:
    """Returns the error of a request without a key that is known."""
    return RequestError(
        401,
        "the API key is missing or unknown; send it as `Authorization: Bearer KEY`",
        kind="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def too_many(message: str, seconds: int) -> RequestError:
    """Returns the error of a request for which there is no place now, but may be in some seconds."""
    return RequestError(
        429,
        message,
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(seconds)},
    )


def unavailable(message: str, code: str, seconds: int = 5) -> RequestError:
    """Returns the error of a server that takes no requests now."""
    return RequestError(
        503,
        message,
        kind="service_unavailable_error",
        code=code,
        headers={"Retry-After": str(seconds)},
    )


def not_stored(message: str) -> RequestError:
    """Returns the error of what could not be written to the server's disk."""
    return RequestError(507, message, kind="server_error", code="storage_failed")


def failed(message: str) -> RequestError:
    """Returns the error of a request that the device, and no mistake of the client's, made fail."""
    return RequestError(500, message, kind="server_error", code="device_error")
