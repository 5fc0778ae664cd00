"""A server over the engine: what its clients see, beside what the engine does by itself."""

import contextlib
import dataclasses
import multiprocessing
import threading
import time
from collections.abc import Iterator
from typing import Any

from griffin_jax import checkpoints
from griffin_jax.benchmarks.engine import clients
from griffin_jax.benchmarks.engine.host_work import Watch
from griffin_jax.benchmarks.engine.offline import requests_of
from griffin_jax.benchmarks.stacks import require
from griffin_jax.language_model import LanguageModel
from griffin_jax.tokenizer import load_tokenizer

Row = dict[str, Any]
_WARM = 8  # tokens of each answer of a first round, which does not count
_PATIENCE = 1200  # seconds that a server may take to compile


def measure(lm: LanguageModel, config: dict[str, Any]) -> Iterator[Row]:
    """Yields a row for each number of clients, of one server with slots for the most of them.

    Each client, all of them in a process of its own, streams one answer after another. The engine
    then gets the same requests at once, with as many slots as there were clients. What the model
    would say does not matter: a tokenizer that knows fewer tokens than it has serves as well.

    Raises:
      Unavailable: the packages of a server are not installed.
    """
    for package, version in (("starlette", "1.10"), ("uvicorn", "0.54"), ("llguidance", "1.9.1")):
        require(package, version, "pip install griffin_jax[serve]")
    prompt, tokens = config["served"]
    if lm.tokenizer is None:
        tokenizer = load_tokenizer(checkpoints.find_folder(checkpoints.BUNDLED))
        lm = dataclasses.replace(lm, tokenizer=tokenizer)
    most = max(config["clients"])
    rows = tuple(config["rows"] or ())
    spawned = multiprocessing.get_context("spawn").Pool(1)
    with spawned as pool, _server(lm, slots=most, rows=rows) as (url, engine):
        for count in config["clients"]:
            total = count * config["rounds"]
            requests = requests_of(lm.config.vocab_size, [(prompt, tokens)] * total, config["seed"])
            prompts = [asked for asked, _ in requests]
            pool.apply(clients.ask, (url, prompts[:count], count, min(_WARM, tokens)))
            watch = Watch(engine.stats)
            seen = pool.apply(clients.ask, (url, prompts, count, tokens))
            about = {"what": "serving", "clients": count, "requests": total, "prompt": prompt}
            about |= {"new_tokens": tokens, **watch.shares(watch.turn_seconds)} | seen
            alone = _by_the_engine(lm, prompts, count, tokens, [r for r in rows if r <= count])
            yield about | {"engine_tokens_per_second": alone}


def _by_the_engine(lm, prompts, slots, tokens, rows):
    """Returns the tokens per second of an engine of its own, which nothing else is asked of."""
    with lm.engine(slots=slots) as engine:
        engine.compile_ahead(rows or None, sampling=False)
        for _ in engine.as_ended([engine.submit(p, 2, stop_ids=()) for p in prompts[:slots]]):
            pass
        before = engine.stats.drawn_tokens
        begin = time.perf_counter()
        for prompt in prompts:
            engine.submit(prompt, tokens, stop_ids=())
        engine.run()
        return (engine.stats.drawn_tokens - before) / (time.perf_counter() - begin)


@contextlib.contextmanager
def _server(lm, slots, rows):
    """Yields the address and the engine of a server that has compiled all that it will, in a thread."""
    from griffin_jax.serving.server import bind, make_server
    from griffin_jax.serving.settings import ServerSettings

    settings = ServerSettings(
        port=0,
        slots=slots,
        waiting=4 * slots,
        prefix_cache_bytes=0,
        compile_sampling=False,
        compile_rows=rows,
    )
    with bind(settings) as listener:
        server = make_server(lm, settings, "model", frozenset())
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until = time.monotonic() + _PATIENCE
            while not server.service.compiled:
                if not thread.is_alive() or server.service.state == "failed":
                    raise RuntimeError("the server did not get ready; its log says why")
                if time.monotonic() > until:
                    raise RuntimeError(f"the server was not ready after {_PATIENCE} s")
                time.sleep(0.05)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", server.service.worker.engine
        finally:
            server.should_exit = True
            thread.join(60)
