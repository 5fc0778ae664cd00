"""One JSON line for each request, and for what the server itself does."""

import datetime
import json
import logging
import sys
import time
from typing import Any

from griffin_jax.serving.generation import Plan
from griffin_jax.serving.worker import Batch

requests_log = logging.getLogger("griffin_jax.serving.requests")


class Record:
    """Collects what is logged of a request when it has been answered.

    Attributes:
      id: What the header X-Request-Id of the answer says.
      owner: A digest of its API key.
      plan: What it asked for; None where it came to none.
      batch: The texts that it got; None where there were none.
      texts: Its prompts; None where they are not to be logged.
      error: Why it was refused; None if it was not.
    """

    def __init__(self, name: str, owner: str):
        self.id, self.owner = name, owner
        self.plan: Plan | None = None
        self.batch: Batch | None = None
        self.texts: list[str] | None = None
        self.error: str | None = None
        self._begin = time.monotonic()

    def begin(self, plan: Plan, texts: list[str] | None) -> None:
        """Takes what is asked for."""
        self.plan, self.texts = plan, texts

    def fields(self, method: str, path: str, status: int) -> dict[str, Any]:
        """Returns what the line says."""
        fields: dict[str, Any] = {
            "id": self.id,
            "key": self.owner[:8],
            "method": method,
            "path": path,
            "status": status,
            "seconds": round(time.monotonic() - self._begin, 4),
        }
        if self.error is not None:
            fields["error"] = self.error
        if self.plan is not None:
            fields["prompt_tokens"] = self.plan.prompt_tokens
        if self.batch is not None:
            fields |= _written(self.batch)
        if self.texts is not None:
            fields["prompts"] = self.texts
            if self.batch is not None:
                fields["answers"] = [text.request.sample().text for text in self.batch.texts]
        return fields


def _written(batch: Batch) -> dict[str, Any]:
    requests = [text.request for text in batch.texts]
    firsts = [r.first_token_at - r.submitted for r in requests if r.first_token_at is not None]
    return {
        "completion_tokens": sum(request.num_tokens for request in requests),
        "cached_tokens": sum(request.cached_tokens for request in requests),
        "first_token_seconds": round(min(firsts), 4) if firsts else None,
        "reasons": sorted({request.finish_reason or "left" for request in requests}),
    }


class _Lines(logging.Formatter):
    """A record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        now = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {"time": now.isoformat(timespec="milliseconds"), "level": record.levelname.lower()}
        line |= {"event": record.getMessage()} | getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stderr() -> None:
    """Sends the lines of this package's servers, and uvicorn's own, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    for name in ("griffin_jax.serving", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO if name.startswith("griffin") else logging.WARNING)
