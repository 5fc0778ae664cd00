"""Texts that share a beginning: conversations, forks of one document, a context in a file."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from griffin_jax.inference import PrefixCache
from griffin_jax.inference.row_states import nbytes
from griffin_jax.language_model import LanguageModel

Row = dict[str, Any]


def conversations(lm: LanguageModel, config: dict[str, Any]) -> Iterator[Row]:
    """Yields a row for each kind of cache, of many conversations with one system prompt, by turns.

    All conversations take each turn at once. Then some take one more, each alone: when its first token
    comes, and whether its logits are those of a cache that knows nothing of it.
    """
    count, turns = config["conversations"], config["turns"]
    rng = np.random.default_rng(config["seed"])
    system = rng.integers(0, lm.config.vocab_size, config["system"]).tolist()
    said = rng.integers(0, lm.config.vocab_size, (turns + 1, count, config["said"])).tolist()
    for kind, new_cache in (
        ("none", lambda: None),
        ("exact", lambda: PrefixCache(config["cache_bytes"])),
        ("every turn", lambda: PrefixCache(config["cache_bytes"], exact=False)),
    ):
        _converse(lm, config, system, [turn[:2] for turn in said[:2]], new_cache())  # compiles
        some = min(count, config["uncached"]) if kind == "none" else count
        row = {"what": "conversations", "cache": kind, "conversations": some, "turns": turns}
        cache = new_cache()
        texts, found = _converse(lm, config, system, [turn[:some] for turn in said[:-1]], cache)
        row |= {"system": len(system)} | found
        more = [text + words for text, words in zip(texts, said[-1], strict=False)]
        yield row | _alone(lm, config, more[: config["uncached"]], cache)


def _converse(lm, config, system, said, cache):
    """Returns the conversations, and what the engine and its cache did."""
    texts = [list(system) for _ in said[0]]
    first = []
    begin = time.perf_counter()
    options = {"slots": config["slots"], "burst": config["burst"], "prefix_cache": cache}
    with lm.engine(**options) as engine:
        for turn in said:
            requests = []
            for text, words in zip(texts, turn, strict=True):
                text += words
                requests.append(engine.submit(text, config["answered"], stop_ids=()))
            engine.run()
            for text, request in zip(texts, requests, strict=True):
                text += request.result().tokens
            first += [r.first_token_at - r.submitted for r in requests]
        stats = engine.stats
    found = {
        "seconds": time.perf_counter() - begin,
        "alone_tokens": stats.alone_tokens,
        "read_tokens": stats.read_tokens,
        "cached_tokens": stats.cached_tokens,
        "first_token_seconds": float(np.median(first)),
    }
    if cache is not None:
        hits, misses = cache.stats.hits, cache.stats.misses
        found |= {"hit_rate": hits / (hits + sum(misses.values())), "misses": dict(misses)}
    return texts, found


def _alone(lm, config, texts, cache):
    """Returns when the first token after each text comes, and how its logits compare."""
    half = texts[0][: len(texts[0]) // 2]
    for each in (cache, PrefixCache(config["cache_bytes"])):  # compiles
        _first_alone(lm, half, each)
    seconds, unknown_seconds, equal, largest = [], [], 0, 0.0
    for text in texts:  # in turns, so that both see the same machine
        took, logits = _first_alone(lm, text, cache)
        unknown, others = _first_alone(lm, text, PrefixCache(config["cache_bytes"]))
        seconds.append(took)
        unknown_seconds.append(unknown)
        equal += np.array_equal(logits, others)
        largest = max(largest, float(np.abs(logits - others).max()))
    return {
        "alone": len(texts),
        "alone_first_token_seconds": float(np.median(seconds)),
        "unknown_first_token_seconds": float(np.median(unknown_seconds)),
        "equal_logits": equal,
        "largest_difference": largest,
    }


def _first_alone(lm, text, cache):
    """Returns the seconds to the first token after a text, and the logits after that, bit by bit."""
    with lm.engine(slots=1, prefix_cache=cache) as engine:
        request = engine.submit(text, 1, stop_ids=(), keep_context=True)
        engine.run()
    context = request.context()
    logits, _ = lm.apply(np.array([context.tokens[-1:]], np.int32), context.state)
    return request.first_token_at - request.submitted, np.asarray(logits)


def first_tokens(lm: LanguageModel, config: dict[str, Any]) -> Iterator[Row]:
    """Yields rows for each length of a prompt: when its first token comes, without a cache and with
    one that knows nothing of it, by where it keeps states.
    """
    rng = np.random.default_rng(config["seed"])
    places = config["every"] or (PrefixCache(0).every,)
    for every in (None, *places):
        cache = None if every is None else PrefixCache(0, every=every)
        with lm.engine(slots=1, prefix_cache=cache) as engine:
            engine.compile_ahead(sampling=False)
    for length in config["first"]:
        prompts = rng.integers(0, lm.config.vocab_size, (config["firsts"] + 1, length)).tolist()
        caches: dict[int | None, PrefixCache | None] = {None: None}
        caches |= {every: PrefixCache(config["cache_bytes"], every=every) for every in places}
        found: dict[int | None, list[float]] = {every: [] for every in caches}
        for prompt in prompts:  # in turns, so that all see the same machine
            for every, cache in caches.items():
                with lm.engine(slots=1, prefix_cache=cache) as engine:
                    request = engine.submit(prompt, 1, stop_ids=())
                    engine.run()
                found[every].append(request.first_token_at - request.submitted)
        seconds = {every: float(np.median(each[1:])) for every, each in found.items()}
        for every in places:
            about = {"what": "first token", "prompt": length, "every": every}
            yield about | {"without_seconds": seconds[None], "with_seconds": seconds[every]}


def forks(lm: LanguageModel, config: dict[str, Any]) -> Iterator[Row]:
    """Yields a row of many texts that go on from one document, and one of its context in a file."""
    rng = np.random.default_rng(config["seed"])
    document = rng.integers(0, lm.config.vocab_size, config["document"]).tolist()
    lm.read(document[: min(len(document), 5000)])  # compiles
    begin = time.perf_counter()
    context = lm.read(document)
    read = time.perf_counter() - begin
    count = config["forks"]
    for warm in (True, False):
        begin = time.perf_counter()
        with lm.engine(slots=count, seconds=None, fill_first=True) as engine:
            requests = [
                engine.submit([i], config["answered"], context=context, stop_ids=(), seed=i)
                for i in range(count)
            ]
            engine.run()
        if warm:
            continue
        yield {
            "what": "forks",
            "document": len(document),
            "forks": count,
            "document_seconds": read,
            "forks_seconds": time.perf_counter() - begin,
            "read_tokens": engine.stats.read_tokens,
            "drawn_tokens": sum(len(r.result().tokens) for r in requests),
            "state_bytes": nbytes(context.state),
        }
    yield from _saved(lm, context, read)


def _saved(lm, context, read):
    """Yields a row of the context in a file, and what is written after it from there."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "document.safetensors")
        lm.save_context(context, file)  # computes the fingerprint
        begin = time.perf_counter()
        lm.save_context(context, file)
        saved = time.perf_counter() - begin
        begin = time.perf_counter()
        loaded = lm.load_context(file)
        jax.block_until_ready(loaded.state)
        took = time.perf_counter() - begin
        size = file.stat().st_size
    before, after = (lm.sample([[5]], 200, context=x, stop_ids=())[0] for x in (context, loaded))
    yield {
        "what": "saved context",
        "tokens": len(context.tokens),
        "read_seconds": read,
        "save_seconds": saved,
        "load_seconds": took,
        "file_bytes": size,
        "next_200_equal": before.tokens == after.tokens,
    }
