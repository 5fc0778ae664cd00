"""Many clients at once, each answer against the lone one: python -m tests.serving.load --clients=200 --seconds=60

Clients ask with mixed settings, streaming or not, some read slowly, some leave in the middle, some break
their connection off. Every answer that comes to its end must be the one that the model gives alone. In
the last half nothing may grow: texts, states, open files, memory, programs. It prints what it found, and fails if
anything is wrong.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import os
import random
import sys
import time
from typing import Any

import httpx
import numpy as np

import griffin_jax
from griffin_jax.benchmarks.timing import Compilation, compilation
from griffin_jax.inference import SamplingConfig
from griffin_jax.language_model import LanguageModel
from tests.serving.running import Running, running

PROMPTS = (
    "It was a dark night, and",
    "The sea",
    "He said that",
    "In the year",
    "A house in the north, ",
)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
    {"temperature": 1.2, "min_p": 0.05},
    {"temperature": 1.0, "presence_penalty": 0.5, "repetition_penalty": 1.2},
    {"temperature": 1.0, "stop": "the"},
)
KINDS = ("whole", "stream", "slow", "left", "broken")


class Clients:
    """Clients, and what has come of them.

    Attributes:
      answers: What was asked and answered.
      counts: How requests have ended.
      gaps: Seconds between one part of a stream and the next.
    """

    def __init__(self, url: str, seconds: float, seed: int = 0, tokens: int = 24, least: int = 0):
        """Makes clients that go on for so many seconds, and until there are so many answers and each
        kind of client was among them.
        """
        self.answers: list[tuple[dict[str, Any], str, str]] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.gaps: list[float] = []
        self._url, self._tokens = url, tokens
        self._until, self._least = time.monotonic() + seconds, least
        self._random = random.Random(seed)

    def run(self, count: int) -> None:
        """Has so many clients ask until the time is over."""
        asyncio.run(self._all(count))

    async def _all(self, count):
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self._url, timeout=300, limits=limits) as client:
            await asyncio.gather(*(self._one(client) for _ in range(count)))

    async def _one(self, client):
        draw = self._random
        while time.monotonic() < self._until or self._lacks():
            body = {
                "prompt": draw.choice(PROMPTS),
                "max_tokens": draw.choice((1, self._tokens // 2, self._tokens)),
                "seed": draw.randrange(4),
                **draw.choice(SETTINGS),
            }
            kind = draw.choices(KINDS, (3, 4, 1, 1, 1))[0]
            try:
                await getattr(self, f"_{kind}")(client, body)
            except httpx.HTTPError as error:
                self.counts[f"failed: {type(error).__name__}"] += 1
            await asyncio.sleep(0)

    def _lacks(self):
        least = self._least
        return len(self.answers) < least or (least and not {*KINDS} <= {*self.counts})

    async def _whole(self, client, body):
        response = await client.post("/v1/completions", json=body)
        if response.status_code != 200:
            self.counts[str(response.status_code)] += 1
            await asyncio.sleep(0.2)
            return
        choice = response.json()["choices"][0]
        self._take("whole", body, choice["text"], choice["finish_reason"])

    async def _stream(self, client, body, pause=0.0, parts=None, name="stream"):
        texts, reason, last = [], None, None
        asked = body | {"stream": True}
        async with client.stream("POST", "/v1/completions", json=asked) as response:
            if response.status_code != 200:
                self.counts[str(response.status_code)] += 1
                return
            async for line in response.aiter_lines():
                if not line or line == "data: [DONE]":
                    continue
                now = time.monotonic()
                if last is not None and not pause:
                    self.gaps.append(now - last)
                last = now
                choice = json.loads(line.removeprefix("data: "))["choices"][0]
                texts.append(choice["text"])
                reason = choice["finish_reason"] or reason
                if parts is not None and len(texts) >= parts:
                    self.counts[name] += 1
                    return
                await asyncio.sleep(pause)
        self._take(name, body, "".join(texts), reason)

    async def _slow(self, client, body):
        await self._stream(client, body, pause=self._random.uniform(0.01, 0.3), name="slow")

    async def _left(self, client, body):
        await self._stream(client, body, parts=self._random.randint(1, 3), name="left")

    async def _broken(self, client, body):
        host, port = self._url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        data = json.dumps(body | {"stream": True}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        ).encode()
        whole = head + data
        writer.write(whole[: self._random.randint(1, len(whole))])
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            await asyncio.sleep(self._random.uniform(0, 0.5))
        writer.transport.abort()
        self.counts["broken"] += 1

    def _take(self, name, body, text, reason):
        self.counts[name] += 1
        self.answers.append((body, text, reason))


def wrong_answers(lm: LanguageModel, answers) -> list[tuple[dict[str, Any], str, str, str]]:
    """Answers that are not the lone ones: what was asked, what came, and what the model says alone."""
    known: dict[str, Any] = {}
    wrong = []
    for body, text, reason in answers:
        key = json.dumps(body, sort_keys=True)
        if key not in known:
            options = {name: value for name, value in body.items() if name not in _ELSEWHERE}
            known[key] = lm.sample(
                [body["prompt"]],
                body["max_tokens"],
                sampling=SamplingConfig(**options),
                seed=[body["seed"]],
                stop=body.get("stop", ()),
            )[0]
        alone = known[key]
        if (text, reason) != (alone.text, alone.finish_reason):
            wrong.append((body, text, reason, alone.text))
    return wrong


_ELSEWHERE = ("prompt", "max_tokens", "seed", "stop")


class Watch:
    """Looks once a second at what a server takes."""

    def __init__(self, server: Running, compiled: Compilation | None = None):
        self._server, self._compiled = server, compiled or Compilation()
        self.rows: list[dict[str, float]] = []

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while True:
            self.rows.append(self.look())
            await asyncio.sleep(1)

    def look(self) -> dict[str, float]:
        """Returns what it takes now."""
        load = self._server.service.worker.engine.load()
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        return {
            "memory": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
            "files": len(os.listdir("/proc/self/fd")),
            "open": self._server.service.worker.num_open,
            "state_bytes": load.state_bytes,
            "programs": self._compiled.programs,
        }


def main():
    """See above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--model", default="griffin-tiny")
    options = parser.parse_args()
    # In bfloat16 the products of more rows round otherwise, and a near tie falls the other way.
    lm = griffin_jax.load(options.model, dtype="float32")
    with (
        running(lm, slots=options.slots, waiting=256, compile_sampling=True) as server,
        compilation() as compiled,
    ):
        while not server.service.compiled:
            time.sleep(0.1)
        clients = Clients(server.url, options.seconds)
        watch = Watch(server, compiled)

        async def both():
            watching = asyncio.create_task(watch.run())
            await clients._all(options.clients)
            watching.cancel()

        begin = time.monotonic()
        asyncio.run(both())
        seconds = time.monotonic() - begin
        time.sleep(1)
        last = watch.look()
        drawn = server.service.worker.engine.stats.drawn_tokens
        ended = dict(server.service.worker.engine.stats.ended)
    half = watch.rows[len(watch.rows) // 2 :]
    print(f"{options.clients} clients, {seconds:.0f} s: {dict(clients.counts)}")
    print(f"{drawn} tokens, {drawn / seconds:.0f} a second; texts ended: {ended}")
    middle, late = np.percentile(clients.gaps, (50, 99))
    print(f"between parts of a stream: median {middle:.3f} s, 99th percentile {late:.3f} s")
    for name in last:
        found = [row[name] for row in half]
        print(
            f"{name}: last half {min(found):.0f} to {max(found):.0f}, at its end {found[-1]:.0f}, later {last[name]:.0f}"
        )
    wrong = wrong_answers(lm, clients.answers)
    print(f"{len(clients.answers)} answers, {len(wrong)} of them not the lone ones")
    for one in wrong[:5]:
        print(one)
    sys.exit(bool(wrong) or last["open"] > 0)


if __name__ == "__main__":
    main()
