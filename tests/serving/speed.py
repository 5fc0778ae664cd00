"""How fast a server answers: python -m tests.serving.speed --model=griffin-tiny --clients=1,8 --prompt=64 --tokens=64

So many clients, of another process, each stream one answer after another; the same requests are then given
to the engine itself, all at once. It prints a line of JSON for each number of clients: output tokens a
second of both, times to the first token and between tokens (median and 99th percentile).
"""

import argparse
import asyncio
import json
import multiprocessing
import time
from typing import Any

import httpx
import numpy as np

from griffin_jax.evaluation import model as models
from tests.serving.running import running


def prompts_of(count: int, length: int, vocab_size: int) -> list[list[int]]:
    """Prompts of random tokens, which have nothing in common."""
    rng = np.random.default_rng(0)
    return rng.integers(3, vocab_size, (count, length)).tolist()


def ask(url: str, prompts: list[list[int]], clients: int, tokens: int) -> dict[str, Any]:
    """Returns what so many clients see; for a process of its own."""
    firsts: list[float] = []
    gaps: list[float] = []
    written = 0

    async def one(client, prompt):
        nonlocal written
        body = {
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        begin = last = time.perf_counter()
        first = True
        async with client.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if not line or line == "data: [DONE]":
                    continue
                now = time.perf_counter()
                event = json.loads(line.removeprefix("data: "))
                if event["usage"] is not None:
                    written += event["usage"]["completion_tokens"]
                elif first:
                    firsts.append(now - begin)
                    first = False
                else:
                    gaps.append(now - last)
                last = now

    async def all_of_them():
        waiting = list(prompts)
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

            async def go_on():
                while waiting:
                    await one(client, waiting.pop())

            await asyncio.gather(*(go_on() for _ in range(clients)))

    begin = time.perf_counter()
    asyncio.run(all_of_them())
    seconds = time.perf_counter() - begin
    return {
        "tokens_per_second": written / seconds,
        "first_token_seconds": np.percentile(firsts, (50, 99)).tolist(),
        "between_parts_seconds": np.percentile(gaps, (50, 99)).tolist(),
        "seconds_per_token": (seconds * clients) / max(written, 1),
    }


def by_the_engine(lm, prompts, clients: int, tokens: int) -> float:
    """Tokens a second of an engine of its own, which nothing else is asked of."""
    with lm.engine(slots=clients) as engine:
        engine.compile_ahead(sampling=False)
        begin = time.perf_counter()
        for prompt in prompts:
            engine.submit(prompt, tokens, stop_ids=())
        engine.run()
        return engine.stats.drawn_tokens / (time.perf_counter() - begin)


def main():
    """See above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="griffin-tiny")
    parser.add_argument("--quantization", default=None)
    parser.add_argument("--clients", default="1,8")
    parser.add_argument("--rounds", type=int, default=2, help="answers that each client asks for")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--output", default=None)
    options = parser.parse_args()
    lm = models.load(options.model, quantization=options.quantization)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        for clients in map(int, options.clients.split(",")):
            prompts = prompts_of(clients * options.rounds, options.prompt, lm.config.vocab_size)
            settings = {
                "slots": clients,
                "waiting": clients * options.rounds,
                "compile_sampling": False,
            }
            with running(lm, prefix_cache_bytes=0, **settings) as server:
                while not server.service.compiled:
                    time.sleep(0.1)
                asked = (server.url, prompts[:clients], clients, options.tokens)
                pool.apply(ask, asked)  # compiles what is left to compile
                found = pool.apply(ask, (server.url, prompts, clients, options.tokens))
            found["engine_tokens_per_second"] = by_the_engine(lm, prompts, clients, options.tokens)
            found = {"model": options.model, "clients": clients, "prompt": options.prompt} | found
            line = json.dumps(found | {"new_tokens": options.tokens})
            print(line, flush=True)
            if options.output:
                with open(options.output, "a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
