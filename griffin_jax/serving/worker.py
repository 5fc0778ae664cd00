"""The one thread that owns the device, and what passes between it and the event loop.

The thread takes the engine's turns. Between two of them it does one step of the other work that a
server has for a device, so that texts in the making never wait for more than that, and hands over
what has been written since: the event loop never waits for the device, and takes no lock of the
engine's.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool

from griffin_jax.inference import Engine, EngineClosed, Request, Sample
from griffin_jax.serving.errors import RequestError, failed, invalid, too_many, unavailable

log = logging.getLogger(__name__)

_RETRY_AT_MOST = 60  # seconds


@dataclasses.dataclass(eq=False)
class Text:
    """A text that is being written for a client.

    Attributes:
      index: Its number among those of its request.
      request: The engine's.
      seen: How many of its tokens have been handed over.
      last_at: When tokens of it were handed over last.
    """

    index: int
    request: Request
    seen: int = 0
    last_at: float | None = None


class Batch:
    """The texts of one client's request; of the event loop.

    Attributes:
      texts: All of them.
      pieces: Whether they are handed over as they come, and not only at their ends.
    """

    def __init__(self, texts: list[Text], pieces: bool):
        self.texts = texts
        self.pieces = pieces
        self._queue: asyncio.Queue[tuple[Text, Sample]] = asyncio.Queue()

    async def parts(self) -> AsyncIterator[tuple[Text, Sample]]:
        """Yields what comes of each text, until all have ended.

        Raises:
          RequestError: one failed.
        """
        left = len(self.texts)
        while left:
            text, part = await self._queue.get()
            if text.request.error is not None:
                raise _of_text(text.request.error)
            left -= part.finish_reason is not None
            yield text, part

    async def results(self) -> list[Sample]:
        """Returns all texts, once they have ended; only of those that are not handed over in pieces."""
        found: list[Any] = [None] * len(self.texts)
        async for text, sample in self.parts():
            found[text.index] = sample
        return found

    def cancel(self) -> None:
        """Ends what has not ended yet."""
        for text in self.texts:
            if not text.request.ended:
                with contextlib.suppress(ValueError):  # it was cancelled before
                    text.request.cancel()

    def put(self, text: Text, part: Sample) -> None:
        """Takes what came of a text."""
        self._queue.put_nowait((text, part))


@dataclasses.dataclass(eq=False)
class _Job:
    steps: Generator[None, None, Any]
    done: concurrent.futures.Future


class Worker:
    """Runs an engine in a thread of its own.

    Attributes:
      engine: The engine.
      most_open: How many texts may be open at once, being written or waiting.
      failures: How often a turn of the engine has raised.
      last_error: What the last turn raised; None once one has gone well after it.
    """

    def __init__(
        self,
        engine: Engine,
        most_open: int,
        on_tokens: Callable[[Text, int, float | None], None] = lambda *_: None,
        on_end: Callable[[Text], None] = lambda _: None,
    ):
        """Makes a worker that has not begun.

        Args:
          engine: The engine, which nobody else drives.
          most_open: See above.
          on_tokens: Called in the event loop when so many tokens of a text have come, with the
            seconds since the ones before; None for the first.
          on_end: Called in the event loop when a text has ended.
        """
        self.engine = engine
        self.most_open = most_open
        self.failures = 0
        self.last_error: Exception | None = None
        self._on_tokens, self._on_end = on_tokens, on_end
        self._slots = engine.load().slots
        self._lock = threading.Lock()
        self._open: dict[Text, Batch] = {}
        self._promised = 0  # texts that are about to be open
        self._jobs: collections.deque[_Job] = collections.deque()
        self._news = 0
        self._closing = False
        self._seconds = 1.0  # that a text takes, as of late
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._drive, name="device", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts the thread, which hands what comes over to this event loop."""
        self._loop = loop
        self._thread.start()

    def close(self) -> None:
        """Ends all texts and the thread."""
        self._closing = True
        self._wake()
        self._thread.join()
        self.engine.close()
        for job in self._jobs:
            job.done.cancel()

    @property
    def num_open(self) -> int:
        """The number of texts that have not ended."""
        return len(self._open) + self._promised

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def submit(self, wanted: Sequence[dict[str, Any]], pieces: bool) -> Batch:
        """Asks the engine for texts: all of them, or none. Not for the event loop's own thread.

        Args:
          wanted: Arguments of `Engine.submit` for each; the caller holds `places` for them.
          pieces: See `Batch`.

        Raises:
          RequestError: an argument is wrong.
        """
        requests: list[Request] = []
        try:
            for arguments in wanted:
                requests.append(self.engine.submit(**arguments))
        except Exception as error:
            for request in requests:
                request.cancel()
            raise _of_engine(error) from error
        texts = [Text(i, request) for i, request in enumerate(requests)]
        batch = Batch(texts, pieces)
        with self._lock:
            self._open |= dict.fromkeys(texts, batch)
        self._wake()
        return batch

    @contextlib.contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Holds the places of texts that are about to be open.

        Raises:
          RequestError: there are not so many.
        """
        if count > self.most_open:
            raise invalid(
                f"the request asks for {count} texts at once; this server takes {self.most_open}"
            )
        with self._lock:
            if self.num_open + count > self.most_open:
                raise too_many(
                    f"{self.num_open} texts are being written or wait, and there is place for "
                    f"{self.most_open}; try again later",
                    self._retry_after(),
                )
            self._promised += count
        try:
            yield
        finally:
            with self._lock:
                self._promised -= count

    async def begin(self, wanted: Callable[[], Sequence[dict[str, Any]]], pieces: bool) -> Batch:
        """Does what `submit` does with what `wanted` returns, both in a thread of the pool; where it is
        cancelled, so are the texts.
        """
        submitting = asyncio.ensure_future(run_in_threadpool(lambda: self.submit(wanted(), pieces)))
        try:
            return await asyncio.shield(submitting)
        except asyncio.CancelledError:
            submitting.add_done_callback(_cancel_texts)
            raise

    async def run(self, steps: Generator[None, None, Any]) -> Any:
        """Does other work of the device, a step between two turns of the engine.

        Args:
          steps: Yields between its steps, and returns the result.
        """
        job = _Job(steps, concurrent.futures.Future())
        self._jobs.append(job)
        self._wake()
        return await asyncio.wrap_future(job.done)

    def _retry_after(self) -> int:
        """Returns the seconds until one of those that wait has had its turn, as far as can be told."""
        rounds = max(self.num_open / self._slots - 1, 0.5)
        return min(max(round(rounds * self._seconds), 1), _RETRY_AT_MOST)

    def _wake(self) -> None:
        with self.engine.changed:
            self._news += 1
            self.engine.changed.notify_all()

    def _drive(self) -> None:
        while not self._closing:
            seen = self._news
            busy = self._turn()
            self._advance()
            self._hand_over()
            with self.engine.changed:
                if not busy:
                    self.engine.changed.wait_for(
                        lambda: self._closing or self._jobs or self._news != seen  # noqa: B023
                    )

    def _turn(self) -> bool:
        before = self.engine.last_error
        try:
            busy = self.engine.step()
        except Exception as error:  # of the engine itself, which has ended all texts by it
            log.exception("a turn of the engine failed")
            self.failures += 1
            self.last_error = error
            return False
        if (error := self.engine.last_error) is not before:  # no text's own, such as of its grammar
            self.failures += 1
            self.last_error = error
        elif busy:
            self.last_error = None
        return busy

    def _advance(self) -> None:
        """Does one step of the work that has waited longest, which then waits again."""
        if not self._jobs:
            return
        job = self._jobs.popleft()
        if job.done.cancelled():
            job.steps.close()
            return
        try:
            next(job.steps)
        except StopIteration as end:
            _settle(job.done.set_result, end.value)
        except Exception as error:
            _settle(job.done.set_exception, error)
        else:
            self._jobs.append(job)

    def _hand_over(self) -> None:
        """Gives the event loop what has come since the last turn."""
        now, found = time.monotonic(), []
        with self._lock:
            opened = list(self._open.items())
        for text, batch in opened:
            request = text.request
            ended = request.ended
            if not ended and (not batch.pieces or request.num_tokens == text.seen):
                continue
            part = request.take() if batch.pieces else request.sample()
            before, text.seen = text.seen, request.num_tokens
            gap = None if text.last_at is None else now - text.last_at
            text.last_at = now
            if ended or part.text or part.tokens:
                found.append((text, batch, part, text.seen - before, gap))
            if part.finish_reason is not None:
                took = max(now - request.submitted, 0.0)
                self._seconds += 0.1 * (took - self._seconds)
                with self._lock:
                    del self._open[text]
        if found:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self._deliver, found)

    def _deliver(self, found) -> None:
        for text, batch, part, count, gap in found:
            batch.put(text, part)
            if batch.pieces and count:
                self._on_tokens(text, count, gap)
            if part.finish_reason is not None:
                self._on_end(text)


def _settle(how, value):
    with contextlib.suppress(concurrent.futures.InvalidStateError):  # nobody waits any more
        how(value)


def _cancel_texts(submitted: "asyncio.Task[Batch]") -> None:
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()


def _of_engine(error: Exception) -> RequestError:
    """Returns what a client is told where the engine takes no request like this one."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ValueError | TypeError):
        return invalid(str(error))
    if isinstance(error, EngineClosed):
        return unavailable("the server is ending", "closing")
    return _of_text(error)


def _of_text(error: Exception) -> RequestError:
    """Returns what a client is told of a text that failed on its way."""
    if isinstance(error, RequestError):
        return error
    return failed(f"the device failed this request: {type(error).__name__}")
