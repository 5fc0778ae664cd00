"""Clients of a server, each of which streams one answer after another; for a process of their own."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

_LINE = 2**24  # bytes of a line at most


def ask(url: str, prompts: Sequence[list[int]], clients: int, tokens: int) -> dict[str, Any]:
    """Returns what so many clients see who ask for texts of so many tokens after the prompts.

    Raises:
      RuntimeError: an answer was none.
    """
    firsts: list[float] = []
    gaps: list[float] = []
    each: list[float] = []
    address = urlsplit(url)
    waiting = list(prompts)
    written = 0

    async def one(prompt):
        nonlocal written
        begin = time.perf_counter()
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=_LINE)
        writer.write(_request(prompt, tokens))
        first: float | None = None
        last = begin
        async for line in reader:
            if not line.startswith(b"data: "):
                if first is None and line.startswith(b"HTTP/") and b" 200 " not in line:
                    raise RuntimeError(f"the server answered {line!r}")
                continue
            if line.startswith(b"data: [DONE]"):
                break
            now = time.perf_counter()
            event = json.loads(line[len(b"data: ") :])
            if "error" in event:
                raise RuntimeError(f"the server answered {event['error']}")
            if event["usage"] is not None:
                count = event["usage"]["completion_tokens"]
                written += count
                each.append((last - (first or last)) / max(count - 1, 1))
            elif first is None:
                first = last = now
                firsts.append(now - begin)
            else:
                gaps.append(now - last)
                last = now
        writer.close()

    async def go_on():
        while waiting:
            await one(waiting.pop())

    async def everybody():
        await asyncio.gather(*(go_on() for _ in range(clients)))

    begin = time.perf_counter()
    asyncio.run(everybody())
    seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "tokens_per_second": written / seconds,
        "first_token_seconds": quantiles(firsts),
        "seconds_between_pieces": quantiles(gaps),
        "seconds_per_token": quantiles(each),
    }


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Returns the median and the 99th percentile; zeros of nothing."""
    middle, late = np.quantile(seconds, (0.5, 0.99)).tolist() if seconds else (0.0, 0.0)
    return {"median": middle, "late": late}


def _request(prompt, tokens):
    body = {
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content
