"""Tokens per second where all requests are there from the beginning."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from griffin_jax.benchmarks.engine import static
from griffin_jax.benchmarks.engine.host_work import Watch, full_rows
from griffin_jax.benchmarks.timing import compilation
from griffin_jax.language_model import LanguageModel

Row = dict[str, Any]
_CUT = 700  # tokens of a prompt


def requests_of(vocab_size: int, lengths: Sequence[Sequence[int]], seed: int) -> list:
    """Returns prompts of random tokens and how many are to be drawn, for (prompt, new) of each."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, vocab_size, prompt).tolist(), new) for prompt, new in lengths]


def measure(lm: LanguageModel, config: dict[str, Any]) -> Iterator[Row]:
    """Yields a row of the engine and one of static batches, over the same requests; greedy, no
    text ends early.

    Each first serves a few requests that are cut short, and what it compiles later does not count.
    Beside the engine's whole time stand that of reading the prompts alone, and the tokens per second
    of rows that are full all the time and read nothing.
    """
    lengths = config["offline"][: config["offline_requests"]]
    requests = requests_of(lm.config.vocab_size, lengths, config["seed"])
    slots, batch_size, burst = config["slots"], config["static_batch"], config["burst"]
    asked = sum(new for _, new in requests)
    cut = [(prompt[:_CUT], min(new, _CUT // 8)) for prompt, new in requests]
    _serve(_engine(lm, config), cut[: slots + slots // 4])

    def row(way, seconds, cpu, more):
        about = {"what": "offline", "way": way, "requests": len(requests), "seconds": seconds}
        about |= {"cpu_seconds": cpu}
        about |= {"prompt_tokens": sum(len(p) for p, _ in requests), "new_tokens": asked}
        return about | {"tokens_per_second": asked / seconds} | more

    engine = _engine(lm, config)
    watch = Watch(engine.stats)
    with compilation() as compiled:
        begin, cpu = time.perf_counter(), time.process_time()
        ours, stats = _serve(engine, requests)
        cpu = time.process_time() - cpu
    seconds = time.perf_counter() - begin - compiled.seconds
    more = {"slots": slots, "steps": stats.steps, "row_steps": stats.row_steps}
    more |= {"read_tokens": stats.read_tokens, "padded_tokens": stats.padded_tokens}
    more |= watch.shares(seconds, compiled.seconds)
    reading = _seconds(lambda: _read(_engine(lm, config), requests))
    full = full_rows(lm, config, slots)["tokens_per_second"]
    more |= {"reading_seconds": reading, "full_rows_per_second": full}
    if seconds > reading:
        more |= {"drawn_per_second": asked / (seconds - reading)}
    yield row("engine", seconds, cpu, more | {"used_rows": asked / stats.row_steps})
    if not batch_size:
        return
    static.run(lm, cut[:batch_size], batch_size, burst)
    with compilation() as compiled:
        begin, cpu = time.perf_counter(), time.process_time()
        theirs = static.run(lm, requests, batch_size, burst)
        cpu = time.process_time() - cpu
    seconds = time.perf_counter() - begin - compiled.seconds
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    yield row("static batches", seconds, cpu, {"slots": batch_size, "equal_texts": same})


def _engine(lm, config):
    options = {"slots": config["slots"], "burst": config["burst"]}
    engine = lm.engine(**options, seconds=None, fill_first=True)
    engine.compile_ahead(config["rows"] or None, sampling=False)
    return engine


def _seconds(work):
    with compilation() as compiled:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin - compiled.seconds


def _read(engine, requests):
    """Reads the prompts, whose last tokens a first draw would read; gives none of them a row."""
    with engine:
        for prompt, _ in requests:
            engine.submit(prompt, 0, keep_context=True)
        engine.run()


def _serve(engine, requests):
    with engine:
        given = [engine.submit(prompt, new, stop_ids=()) for prompt, new in requests]
        engine.run()
    return [request.result().tokens for request in given], engine.stats
