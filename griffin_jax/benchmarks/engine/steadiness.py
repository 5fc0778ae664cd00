"""Memory over very many requests, some of which are cancelled, late or cut off by the engine's end."""

import gc
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from griffin_jax.benchmarks import memory
from griffin_jax.inference import PrefixCache
from griffin_jax.inference.request import Request
from griffin_jax.inference.row_states import fresh_row, nbytes
from griffin_jax.language_model import LanguageModel

Row = dict[str, Any]


def measure(lm: LanguageModel, config: dict[str, Any]) -> Iterator[Row]:
    """Yields a row: bytes of live arrays and of the process, on the way, at the end and after.

    A tenth of the requests comes before, which compiles what is needed.
    """
    jax.block_until_ready(jax.tree.leaves(lm.decoding_params))
    _serve(lm, config, -(-config["steady"] // 10))
    gc.collect()
    before, host = _live(), memory.host_bytes()
    begin = time.perf_counter()
    row = _serve(lm, config, config["steady"])
    gc.collect()
    seconds = time.perf_counter() - begin
    about = {"what": "steady memory", "requests": config["steady"], "seconds": seconds}
    after = {
        "left_bytes": _live() - before,
        "left_requests": sum(isinstance(one, Request) for one in gc.get_objects()),
        "process_bytes_before": host,
        "process_bytes_after": memory.host_bytes(),
    }
    yield about | row | after


def _serve(lm, config, count):
    """Returns what was alive on the way; nothing of the engine outlives this call."""
    rng = np.random.default_rng(config["seed"])
    slots = config["slots"]
    state = nbytes(fresh_row(lm.model, lm.decoding_params, 1))
    cache = PrefixCache(8 * state, every=32, exact=False)
    marks: list[tuple[int, int | None]] = []

    def submit():
        prompt = rng.integers(0, lm.config.vocab_size, rng.integers(1, 80)).tolist()
        deadline = 1e-3 if rng.random() < 0.05 else None
        new = int(rng.integers(1, 24))
        return engine.submit(prompt, new, temperature=1.0, deadline=deadline)

    with lm.engine(slots=slots, seconds=None, burst=8, prefix_cache=cache) as engine:
        given, done, at_work = [], 0, True
        while done < count or at_work:
            while done < count and len(given) < 2 * slots:
                given.append(submit())
                done += 1
                if done in (count // 10, count // 2):
                    marks.append((_live(), memory.host_bytes()))
            if given and rng.random() < 0.2:
                given.pop(rng.integers(len(given))).cancel()
            at_work = engine.step()
            given = [request for request in given if not request.ended]
        marks.append((_live(), memory.host_bytes()))
        ended = dict(engine.stats.ended)
        killed = [submit() for _ in range(3 * slots)]
        for _ in range(3):  # some wait, some are read, some are written
            engine.step()
    return {
        "ended": ended,
        "killed": sum(request.finish_reason == "cancelled" for request in killed),
        "state_bytes": state,
        "slot_bytes": _slot_bytes(lm, slots),
        "reckoned_bytes": reckoned_bytes(lm),
        "live_bytes": [live for live, _ in marks],
        "process_bytes": [host for _, host in marks],
    }


def _slot_bytes(lm, slots):
    """Returns what each row of a full pool takes on the device."""
    with lm.engine(slots=slots, seconds=None, burst=8, fill_first=True) as engine:
        for _ in range(slots):
            engine.submit([1], 16, stop_ids=())
        while engine.load().writing < slots:
            engine.step()
        return engine.load().state_bytes / slots


def reckoned_bytes(lm: LanguageModel) -> int:
    """Returns what one text's state takes by the shapes of Griffin's paper, 2.3 and 2.4.

    That is a position; for a recurrent block its state in float32 and the convolution's inputs before the
    last; for an attention block a window of keys and of values.
    """
    config, size = lm.config, np.dtype(lm.dtype).itemsize
    keys = config.num_kv_heads * (config.head_size or 0)
    blocks = {
        "recurrent": config.recurrence_width * (4 + (config.conv_width - 1) * size),
        "attention": 2 * (config.attention_window or 0) * keys * size,
    }
    return 4 + sum(blocks[kind] for kind in config.block_types)


def _live():
    """Returns the bytes of all arrays that are alive."""
    return sum(x.nbytes for x in jax.live_arrays() if not x.is_deleted())
