"""Latency under load: requests that arrive as a Poisson process."""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from griffin_jax.benchmarks.engine.clients import quantiles
from griffin_jax.benchmarks.engine.host_work import Watch
from griffin_jax.benchmarks.engine.offline import requests_of
from griffin_jax.language_model import LanguageModel

Row = dict[str, Any]
_BUSY = 0.9  # of the rate at which an engine serves so many at once


def measure(lm: LanguageModel, config: dict[str, Any]) -> Iterator[Row]:
    """Yields a row for each number of requests at once.

    So many are first served all at once, twice: that compiles what is needed, and says how fast the
    engine is. Then requests arrive at random, at 0.9 of that rate.
    """
    for count in config["concurrent"]:
        _serve(lm, config, count, np.zeros(count))
        begin = time.monotonic()
        _serve(lm, config, count, np.zeros(count))
        rate = _BUSY * count / (time.monotonic() - begin)
        rng = np.random.default_rng(config["seed"])
        total = max(config["arrivals"], 2 * count)
        at = np.cumsum(rng.exponential(1 / rate, total))
        yield {"what": "load", "concurrent": count, "rate": rate} | _serve(lm, config, count, at)


def _serve(lm, config, slots, at):
    """Serves requests that arrive at these seconds; what they saw."""
    lengths = [config["arriving"]] * len(at)
    requests = requests_of(lm.config.vocab_size, lengths, config["seed"])
    given, pieces, inside = [], [], []
    with lm.engine(slots=slots, burst=config["burst"]) as engine:
        if config["rows"]:
            rows = [rows for rows in config["rows"] if rows <= slots]
            engine.compile_ahead(rows, sampling=False)
        watch = Watch(engine.stats)
        begin, busy = time.monotonic(), True
        while len(given) < len(at) or busy:
            now = time.monotonic() - begin
            while len(given) < len(at) and at[len(given)] <= now:
                prompt, new = requests[len(given)]
                given.append(engine.submit(prompt, new, stop_ids=()))
                pieces.append([])
            busy = engine.step()
            if not busy and len(given) < len(at):
                time.sleep(max(at[len(given)] - (time.monotonic() - begin), 0))
            load = engine.load()
            inside.append(load.waiting + load.reading + load.writing)
            _note(given, pieces)
        seconds = time.monotonic() - begin
        stats = engine.stats
    first = [r.first_token_at - r.submitted for r in given]
    gaps = [b[0] - a[0] for each in pieces for a, b in itertools.pairwise(each)]
    each = [(r.ended_at - r.first_token_at) / max(r.num_tokens - 1, 1) for r in given]
    return {
        "requests": len(given),
        "seconds": seconds,
        "mean_inside": float(np.mean(inside)),
        "tokens_per_second": stats.drawn_tokens / seconds,
        "first_token_seconds": quantiles(first),
        "seconds_per_token": quantiles(each),
        "seconds_between_pieces": quantiles(gaps),
        **watch.shares(watch.turn_seconds),
    }


def _note(requests, pieces):
    """Notes when each request got more tokens, and how many it has."""
    now = time.monotonic()
    for request, times in zip(requests, pieces, strict=True):
        if request.num_tokens > (times[-1][1] if times else 0):
            times.append((now, request.num_tokens))
