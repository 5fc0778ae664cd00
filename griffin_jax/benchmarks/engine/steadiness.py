"""Memory over very many requests, some of which are cancelled."""

import gc
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from griffin_jax.benchmarks import memory
from griffin_jax.inference import PrefixCache
from griffin_jax.inference.row_states import fresh_row, nbytes
from griffin_jax.language_model import LanguageModel

Row = dict[str, Any]


def measure(lm: LanguageModel, config: dict[str, Any]) -> Iterator[Row]:
    """Yields a row: bytes of live arrays and of the process, on the way and at the end."""
    jax.block_until_ready(jax.tree.leaves(lm.decoding_params))
    gc.collect()
    before = _live()
    begin = time.perf_counter()
    row = _serve(lm, config)
    gc.collect()
    seconds = time.perf_counter() - begin
    about = {"what": "steady memory", "requests": config["steady"], "seconds": seconds}
    yield about | row | {"left_bytes": _live() - before}


def _serve(lm, config):
    """Returns what was alive on the way; nothing of the engine outlives this call."""
    rng = np.random.default_rng(config["seed"])
    count, slots = config["steady"], config["slots"]
    state = nbytes(fresh_row(lm.model, lm.decoding_params, 1))
    cache = PrefixCache(8 * state, every=32, exact=False)
    marks: list[tuple[int, int]] = []
    with lm.engine(slots=slots, seconds=None, burst=8, prefix_cache=cache) as engine:
        given, done, at_work = [], 0, True
        while done < count or at_work:
            while done < count and len(given) < 2 * slots:
                prompt = rng.integers(0, lm.config.vocab_size, rng.integers(1, 80)).tolist()
                given.append(engine.submit(prompt, int(rng.integers(1, 24)), temperature=1.0))
                done += 1
                if done in (count // 10, count // 2):
                    marks.append((_live(), memory.host_peak_bytes()))
            if given and rng.random() < 0.2:
                given.pop(rng.integers(len(given))).cancel()
            at_work = engine.step()
            given = [request for request in given if not request.ended]
        marks.append((_live(), memory.host_peak_bytes()))
        return {
            "ended": engine.stats.ended,
            "state_bytes": state,
            "pool_bytes": engine.load().state_bytes,
            "live_bytes": [live for live, _ in marks],
            "process_peak_bytes": [peak for _, peak in marks],
        }


def _live():
    """Returns the bytes of all arrays that are alive."""
    return sum(x.nbytes for x in jax.live_arrays() if not x.is_deleted())
