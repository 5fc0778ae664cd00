"""Seconds of what runs on the device, compilation apart."""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Timing:
    """Repeated measurements of one thing, in seconds.

    Attributes:
      median: The middle one, which reports show.
      low: The shortest.
      high: The longest.
      repeats: How many there were.
    """

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, seconds: list[float], per: int = 1) -> "Timing":
        """Summarizes measurements that each did `per` of what is counted."""
        ordered = sorted(value / per for value in seconds)
        return cls(statistics.median(ordered), ordered[0], ordered[-1], len(ordered))

    def divided(self, count: int) -> "Timing":
        """Returns the time of one of `count` equal things that were timed together."""
        return Timing(self.median / count, self.low / count, self.high / count, self.repeats)

    @property
    def spread(self) -> float:
        """The range of all measurements over their median."""
        return (self.high - self.low) / self.median if self.median else 0.0

    def to_dict(self) -> dict[str, float]:
        """Returns plain values for JSON."""
        return dataclasses.asdict(self) | {"spread": self.spread}


def measure(call: Callable[[], Any], *, warmup: int = 1, repeats: int = 5) -> Timing:
    """Times calls that return arrays; a call ends when the device has finished them."""
    for _ in range(warmup):
        jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - begin)
    return Timing.of(seconds)


@dataclasses.dataclass
class Compilation:
    """Counts of what was compiled within `compilation()`.

    Attributes:
      seconds: The time of compiling, or of reading programs from the persistent cache. Tracing is Python's
        own time and not in it.
      programs: How many programs there were.
      cached: How many of them came from the persistent cache.
    """

    seconds: float = 0.0
    programs: int = 0
    cached: int = 0

    def to_dict(self) -> dict[str, float]:
        """Returns plain values for JSON."""
        return dataclasses.asdict(self)


@contextlib.contextmanager
def compilation() -> Iterator[Compilation]:
    """Counts what JAX compiles inside of the block, on any thread."""
    counted = Compilation()

    def duration(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            counted.seconds += seconds
            counted.programs += 1

    def happened(event: str, **_: Any) -> None:
        counted.cached += event == "/jax/compilation_cache/cache_hits"

    jax.monitoring.register_event_duration_secs_listener(duration)
    jax.monitoring.register_event_listener(happened)
    try:
        yield counted
    finally:
        jax.monitoring.unregister_event_duration_listener(duration)
        jax.monitoring.unregister_event_listener(happened)
