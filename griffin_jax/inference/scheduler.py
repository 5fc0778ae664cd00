"""What an engine does next: which requests are admitted, read and drawn, and how they end."""

import collections
import heapq
import threading
import time
from collections.abc import Callable

import jax

from griffin_jax.inference.context import Context
from griffin_jax.inference.dispatched import Burst, Reading
from griffin_jax.inference.pool import Pool
from griffin_jax.inference.prefix_cache import PrefixCache
from griffin_jax.inference.reader import Reader
from griffin_jax.inference.request import Request
from griffin_jax.inference.stats import EngineStats

_AHEAD = 2  # of how many slots one more prompt is read before there is a row for it


class Waiting:
    """Requests that have no slot yet: of larger priority first, then who came first; or, of one
    priority, who asks for most tokens.
    """

    def __init__(self, longest_first: bool = False):
        self.longest_first = longest_first
        self._heap: list[tuple[int, int, int, Request]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def requests(self) -> list[Request]:
        """Returns all of them, in no order."""
        return [entry[-1] for entry in self._heap]

    def push(self, request: Request) -> None:
        """Adds one."""
        length = request.plan.max_new_tokens if self.longest_first else 0
        heapq.heappush(self._heap, (-request.plan.priority, -length, request.number, request))

    def pop(self) -> Request:
        """Removes and returns the next one."""
        return heapq.heappop(self._heap)[-1]

    def drop_ended(self) -> None:
        """Removes those that have ended."""
        if any(request.ended for request in self.requests()):
            self._heap = [entry for entry in self._heap if not entry[-1].ended]
            heapq.heapify(self._heap)


class Scheduler:
    """The requests of an engine on their way: they wait, are read, have a row of the pool, end.

    One thread at a time takes turns. What others may see changes while `changed` is held.

    Attributes:
      waiting: Requests that have no slot yet.
      watched: Those that may have to end before their text does.
      reader: Reads the prompts.
      pool: Has the rows.
      last_error: The last one that the device raised; None if it has raised none.
      waits: Whether a turn waits for the device, or was interrupted while it did: then the next turn
        goes on from there.
    """

    def __init__(
        self,
        reader: Reader,
        pool: Pool,
        stats: EngineStats,
        changed: threading.Condition,
        cache: PrefixCache | None,
        context_of: Callable[[Request], Context],
        fill_first: bool,
    ):
        self.waiting = Waiting(longest_first=fill_first)
        self.watched: list[Request] = []
        self.reader = reader
        self.pool = pool
        self.last_error: Exception | None = None
        self.waits = False
        self._stats = stats
        self._changed = changed
        self._cache = cache
        self._context_of = context_of
        self._fill_first = fill_first
        self._coming: collections.deque[Burst | Reading] = collections.deque()
        # When the device was seen at work last; None where nothing was to be done.
        self._seen_at_work: float | None = None

    def turn(self, begin: float, limit: int | None) -> bool:
        """Dispatches what is next, then receives what was dispatched before.

        Args:
          begin: When the turn began.
          limit: Steps of the burst at most.

        Returns:
          Whether anything is left to do.
        """
        self.waits = False
        self._end_overdue(begin)
        older = len(self._coming)
        self._admit()
        idle = self._is_idle()
        if (reading := self.reader.read()) is not None:
            self._dispatched(reading, idle)
        draws = not (self._fill_first and self.reader.is_reading)
        if draws:
            self._enter_pool()
        if self.pool.must_see:
            older -= self._receive_next(older, begin)
        if draws:
            self._draw(limit)
        self._receive_next(older, begin)
        with self._changed:
            busy = bool(self._coming or self.waiting or self.reader.requests or self.pool.active)
        if not busy:
            self._seen_at_work = None
        return busy

    def settle(self) -> None:
        """Receives all that has been dispatched, and dispatches nothing."""
        self._receive_next(len(self._coming), time.monotonic())

    def end(self, request: Request, reason: str) -> None:
        """Ends a request wherever it is, but for the list of those that wait."""
        self._leave(request)
        request.end(reason)
        self._count(request)

    def end_all(self, error: Exception | None = None) -> None:
        """Ends all requests, which keep what they have, and lets go of the rows."""
        with self._changed:
            for request in self.unfinished():
                request.end("cancelled") if error is None else request.fail(error)
                request.state = None
                self._count(request)
            self.waiting = Waiting(self._fill_first)
            self._coming.clear()
            self.reader.requests.clear()
            self.pool.clear()
            self._changed.notify_all()  # also who waits for work

    def unfinished(self) -> list[Request]:
        """Returns all requests that have not ended, wherever they are."""
        dispatched = [
            request
            for arriving in self._coming
            for request in arriving.requests
            if request is not None
        ]
        waiting = self.waiting.requests()
        everywhere = (*waiting, *self.reader.requests, *self.pool.active, *dispatched)
        return [request for request in dict.fromkeys(everywhere) if not request.ended]

    def _admit(self):
        """Begins to read the requests that are next, as far as there are slots.

        Where all slots are to be filled, others are read ahead as soon as too few have been for the
        rows that are free: calls then read many prompts together, and rows do not wait for them.
        """
        free, being_read = self.pool.free, len(self.reader.requests)
        if self._fill_first and being_read < max(free, 1):
            free += self.pool.slots // _AHEAD
        for _ in range(free - being_read):
            with self._changed:
                if not self.waiting:
                    return
                request = self.waiting.pop()
            try:
                self.reader.add(request)
            except Exception as error:
                self._fail((request,), error)

    def _enter_pool(self):
        ready = self.reader.take_ready(self.pool.free)
        if self._fill_first:
            expected = len(ready) + len(self.reader.requests) + len(self.waiting)
        else:
            expected = len(ready)
        for request in ready:
            if request.ended:  # by an error of the rows, which a request before it met
                continue
            if request.reason_for_nothing is not None:
                with self._changed:
                    self.end(request, request.reason_for_nothing)
            else:
                try:
                    self.pool.admit(request, expected)
                except Exception as error:
                    self._fail((request,), error, all_rows=not self.pool.is_whole)
            expected -= 1

    def _draw(self, limit):
        idle = self._is_idle()
        try:
            burst = self.pool.draw(limit, bool(self.waiting or self.reader.requests))
        except Exception as error:
            self._fail(self.pool.active, error, all_rows=True)
            return
        if burst is not None:
            self._dispatched(burst, idle)

    def _is_idle(self):
        """Returns whether the device is done with all that was dispatched."""
        if all(arriving.is_there for arriving in self._coming):
            return True
        self._seen_at_work = time.monotonic()
        return False

    def _dispatched(self, arriving, idle):
        """Takes note of what has been dispatched, and of how long the device had nothing to do before."""
        now = time.monotonic()
        if idle and self._seen_at_work is not None:
            self._stats.idle_seconds += now - self._seen_at_work
        self._seen_at_work = now
        self._coming.append(arriving)

    def _receive_next(self, count, begin):
        """Receives so many of what was dispatched first, as far as errors have left them."""
        for _ in range(count):
            if self._coming:
                self._receive(begin)
        return count

    def _receive(self, begin):
        arriving = self._coming[0]  # and stays there until it is
        drawn = error = None
        self.waits = True
        try:
            drawn = self._await(arriving, begin)
        except Exception as raised:
            error = raised
        self.waits = False
        self._coming.popleft()
        try:
            if error is not None:
                raise error
            if drawn is not None:
                self._give(arriving, drawn)
        except Exception as error:
            self._fail(arriving.requests, error, all_rows=isinstance(arriving, Burst))

    def _give(self, burst, drawn):
        with self._changed:
            for request in self.pool.give(burst, drawn):
                self._count(request)
                self._keep_turn_end(request)
            self._changed.notify_all()

    def _await(self, arriving, begin):
        """Waits until the device is done; returns what it has drawn, None for a call that reads."""
        was_there, drawn = arriving.is_there, None
        if isinstance(arriving, Reading):
            self._await_reading(arriving)
        else:
            drawn = self.pool.fetch(arriving, begin)
        if not was_there:  # it was at work until now
            self._seen_at_work = time.monotonic()
        return drawn

    def _await_reading(self, reading):
        if reading.error is not None:
            raise reading.error
        waiting = time.monotonic()
        jax.block_until_ready(reading.done)
        waited = time.monotonic() - waiting
        self._stats.wait_seconds += waited
        self._stats.read_wait_seconds += waited

    def _keep_turn_end(self, request):
        """Has the cache keep the state after a text that has come to its own end."""
        if self.pool.keeps_states and request.error is None and not request.stopped_by_string:
            context = self._context_of(request)
            self._cache.store(context.tokens[: context.read], context.state)
        if not request.plan.keeps_context:
            request.state = None

    def _end_overdue(self, now):
        """Ends the requests that were cancelled, or whose deadline is over."""
        if not self.watched:
            return
        with self._changed:
            self.watched = [request for request in self.watched if not request.ended]
            overdue = [request for request in self.watched if request.overdue(now) is not None]
        if any(request.plan.keeps_context for request in overdue):
            self.settle()  # the state then stands where the text does
        with self._changed:
            for request in overdue:
                if not request.ended:
                    self.end(request, request.overdue(now))
            self.waiting.drop_ended()

    def _fail(self, requests, error, all_rows=False):
        """Ends the requests that an error has hit, with all that have a row if it has hit one of them.

        The rows are one tree of arrays, and what is under way was made from them.
        """
        with self._changed:
            self.last_error = error
            rows = self.pool.active
            if all_rows or any(request in rows for request in requests):
                bursts = [arriving for arriving in self._coming if isinstance(arriving, Burst)]
                requests = [*requests, *rows, *(r for burst in bursts for r in burst.requests)]
                self.pool.clear()
                for burst in bursts:
                    self._coming.remove(burst)
            for request in dict.fromkeys(requests):
                if request is not None and not request.ended:
                    self._leave(request)
                    request.state = None
                    request.fail(error)
                    self._count(request)

    def _leave(self, request):
        if request in self.reader.requests:
            self.reader.requests.remove(request)
            request.state = None
        if request in self.pool.active:
            self.pool.release(request)
        if not request.plan.keeps_context:
            request.state = None

    def _count(self, request):
        self._stats.count_end(request.finish_reason, request.error)
        self._changed.notify_all()
