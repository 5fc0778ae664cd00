"""What an engine has done, in numbers."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import NamedTuple


@dataclasses.dataclass
class EngineStats:
    """Counts since the engine was made.

    Attributes:
      submitted: Requests that came.
      ended: Requests that have ended, by `finish_reason`.
      errors: Those that an error ended, by the name of its type.
      alone_tokens: Tokens of all texts, which would be read if each were read by itself.
      read_tokens: Tokens that were read before the first draw.
      padded_tokens: The same with the padding that calls of fixed lengths add.
      read_calls: Calls that read them.
      cached_tokens: Tokens that did not have to be read, as the prefix cache knew them.
      drawn_tokens: Tokens that were drawn and kept.
      bursts: Calls that drew.
      steps: Steps that were asked for in them.
      row_steps: The same times the rows of the pool, which is what the device computes.
      draft_calls: Calls over a draft, counted for each row that took part.
      drafted_tokens: Tokens of drafts.
      accepted_tokens: Those of them that were drawn: a call draws one more than it accepts.
      host_seconds: What the engine's own turns took on the host, most of it while the device was on
        what had been dispatched before.
      dispatch_seconds: For how long of that programs were handed to the device, which may make the
        host wait where as much is under way as it takes.
      idle_seconds: For how long at most the device had nothing to do while there were requests: from
        when it was last seen at work to when a program was handed to it.
      wait_seconds: For how long they waited for the device.
      read_wait_seconds: For how long of that they waited for calls that read.
    """

    submitted: int = 0
    ended: dict[str, int] = dataclasses.field(default_factory=dict)
    errors: dict[str, int] = dataclasses.field(default_factory=dict)
    alone_tokens: int = 0
    read_tokens: int = 0
    padded_tokens: int = 0
    read_calls: int = 0
    cached_tokens: int = 0
    drawn_tokens: int = 0
    bursts: int = 0
    steps: int = 0
    row_steps: int = 0
    draft_calls: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    host_seconds: float = 0.0
    dispatch_seconds: float = 0.0
    idle_seconds: float = 0.0
    wait_seconds: float = 0.0
    read_wait_seconds: float = 0.0

    @contextlib.contextmanager
    def dispatching(self) -> Iterator[None]:
        """Counts for how long what is inside hands a program to the device."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.dispatch_seconds += time.monotonic() - begin

    def count_read(self, tokens: int, padded: int) -> None:
        """Counts one call over so many tokens, with and without its padding."""
        self.read_calls += 1
        self.read_tokens += tokens
        self.padded_tokens += padded

    def count_burst(self, steps: int, rows: int) -> None:
        """Counts one burst of so many steps over so many rows."""
        self.bursts += 1
        self.steps += steps
        self.row_steps += steps * rows

    def count_drafts(self, calls: int, drafted: int, accepted: int) -> None:
        """Counts the drafts of one row in a burst."""
        self.draft_calls += calls
        self.drafted_tokens += drafted
        self.accepted_tokens += accepted

    def count_end(self, reason: str, error: Exception | None = None) -> None:
        """Counts a request that has ended, by an error if there is one."""
        self.ended[reason] = self.ended.get(reason, 0) + 1
        if error is not None:
            name = type(error).__name__
            self.errors[name] = self.errors.get(name, 0) + 1


class Load(NamedTuple):
    """How busy an engine is now.

    Attributes:
      waiting: Requests that have no slot yet.
      reading: Those whose prompts are being read.
      writing: Those that have a row of the pool.
      slots: How many may be read and written at once.
      state_bytes: What the states of the pool's rows take on the device.
    """

    waiting: int
    reading: int
    writing: int
    slots: int
    state_bytes: int
