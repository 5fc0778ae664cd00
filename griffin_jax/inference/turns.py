"""Who takes an engine's turns: whoever waits for a request, or a thread of its own."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from griffin_jax.inference.scheduler import Scheduler
from griffin_jax.inference.stats import EngineStats


class Turns:
    """The turns of a scheduler, one at a time, from any thread.

    Attributes:
      closed: Whether no thread drives any more.
    """

    def __init__(self, scheduler: Scheduler, stats: EngineStats, changed: threading.Condition):
        self.closed = False
        self._scheduler, self._stats, self._changed = scheduler, stats, changed
        self._lock = threading.RLock()
        self._thread: int | None = None  # that takes one
        self._driven = False

    def take(self, limit: int | None = None) -> bool:
        """Takes one; see `Engine.step`."""
        with self.between():
            begin, waited = time.monotonic(), self._stats.wait_seconds
            self._thread = threading.get_ident()
            try:
                busy = self._scheduler.turn(begin, limit)
            except Exception as error:  # of the engine itself
                self._scheduler.end_all(error)
                raise
            except BaseException:  # such as an interrupt from the keyboard
                if not self._scheduler.waits:
                    self._scheduler.end_all(RuntimeError("an interrupt has ended what was written"))
                raise
            finally:
                self._thread = None
            took = time.monotonic() - begin - (self._stats.wait_seconds - waited)
            self._stats.host_seconds += took
            return busy

    @contextlib.contextmanager
    def between(self) -> Iterator[None]:
        """Has no turn taken meanwhile.

        Raises:
          RuntimeError: it is asked for from within a turn.
        """
        self._check_thread()
        with self._lock:
            yield

    def drive(self) -> None:
        """Takes turns until `closed`."""
        with self._changed:
            self._driven = True
        try:
            while True:
                busy = self.take()
                with self._changed:
                    if self.closed:
                        return
                    if not busy and not self._scheduler.waiting:
                        self._changed.wait()
        finally:
            with self._changed:
                self._driven = False
                self._changed.notify_all()

    def wait_until(self, is_there: Callable[[], bool]) -> None:
        """Waits while another thread drives, and takes turns while none does.

        Raises:
          RuntimeError: it is asked for from within a turn.
        """
        self._check_thread()
        while not is_there():
            with self._changed:
                if self._driven:
                    self._changed.wait_for(lambda: is_there() or not self._driven)
                    continue
            self.take()

    def _check_thread(self):
        if self._thread == threading.get_ident():
            raise RuntimeError(
                "a grammar cannot wait for the engine that asks it; ask another engine"
            )
