"""The work of an engine on the host while all rows are full: no prompt is read, no text ends."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

from griffin_jax import checkpoints
from griffin_jax.benchmarks.stacks.griffin import context_at
from griffin_jax.inference.stats import EngineStats
from griffin_jax.language_model import LanguageModel
from griffin_jax.tokenizer import load_tokenizer

Row = dict[str, Any]
_PLACE, _DRAWN = 2048, 256  # where the rows stand, and what each draws


def measure(lm: LanguageModel, config: dict[str, Any]) -> Iterator[Row]:
    """Yields a row for each number of rows that a config asks for."""
    for rows in config["full"]:
        yield {"what": "host work"} | full_rows(lm, config, rows)


def full_rows(lm: LanguageModel, config: dict[str, Any], rows: int) -> Row:
    """Returns what so many rows get done, and what their host does for it.

    Seconds of the host are those of the clock, and of its thread's own work: where a device is a CPU,
    it takes the cores from the host. What readers of the texts take, each once a burst, is apart. A
    model without a tokenizer gets one, as what it would say does not matter.
    """
    if lm.tokenizer is None:
        tokenizer = load_tokenizer(checkpoints.find_folder(checkpoints.BUNDLED))
        lm = dataclasses.replace(lm, tokenizer=tokenizer)
    with lm.engine(slots=rows, burst=config["burst"], seconds=None, fill_first=True) as engine:
        engine.compile_ahead((rows,), sampling=False)
        context = context_at(engine, _PLACE)
        requests = [
            engine.submit([1], _DRAWN + 2 * config["burst"], stop_ids=(), context=context)
            for _ in range(rows)
        ]
        while not engine.stats.drawn_tokens:
            engine.step()
        engine.settle()
        watch, took, taking = Watch(engine.stats), 0.0, 0.0
        begin, drawn = time.perf_counter(), engine.stats.drawn_tokens
        steps, bursts = engine.stats.steps, engine.stats.bursts
        busy = True
        while busy and engine.stats.drawn_tokens - drawn < _DRAWN * rows:
            before = time.thread_time()
            busy = engine.step()
            between = time.thread_time()
            for request in requests:
                request.take()
            took += between - before
            taking += time.thread_time() - between
        seconds, drawn = time.perf_counter() - begin, engine.stats.drawn_tokens - drawn
        bursts, steps = engine.stats.bursts - bursts, engine.stats.steps - steps
        return {
            "rows": rows,
            "tokens_per_second": drawn / seconds,
            "step_seconds": seconds * rows / drawn,
            "steps_of_burst": steps / bursts,
            "host_seconds_per_token": watch.host_seconds / drawn,
            "dispatch_seconds_per_token": watch.dispatch_seconds / drawn,
            "thread_seconds_per_token": took / drawn,
            "take_seconds_per_token": taking / drawn,
            **watch.shares(seconds),
        }


class Watch:
    """Counts the work of an engine on the host from now on."""

    def __init__(self, stats: EngineStats):
        self._stats = stats
        self._before = stats.host_seconds, stats.dispatch_seconds, stats.idle_seconds
        self._waited = stats.wait_seconds

    @property
    def host_seconds(self) -> float:
        """Seconds that its turns took on the host."""
        return self._stats.host_seconds - self._before[0]

    @property
    def dispatch_seconds(self) -> float:
        """Seconds of these in which programs were handed to the device."""
        return self._stats.dispatch_seconds - self._before[1]

    @property
    def turn_seconds(self) -> float:
        """Seconds that its turns took, those in which it waited for the device included."""
        return self.host_seconds + self._stats.wait_seconds - self._waited

    def shares(self, seconds: float, compiling: float = 0.0) -> Row:
        """Returns shares of so many seconds; what was compiled meanwhile is no part of the host's.

        They are that of the host's work, what of it was handing programs to the device, and for how long
        the device had nothing to do at most.
        """
        stats = self._stats
        idle_seconds = stats.idle_seconds - self._before[2]
        host, dispatch, idle = (
            max(x - compiling, 0) / seconds
            for x in (self.host_seconds, self.dispatch_seconds, idle_seconds)
        )
        return {"host_share": host, "dispatch_share": dispatch, "idle_share": idle}
