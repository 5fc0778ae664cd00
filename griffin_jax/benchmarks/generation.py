"""Seconds from a prompt's arrival to each token, of any stack."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from griffin_jax.benchmarks import counting
from griffin_jax.benchmarks.machine import Limits
from griffin_jax.benchmarks.memory import OutOfMemory
from griffin_jax.benchmarks.stacks import Prompts, Stack
from griffin_jax.benchmarks.subject import Subject
from griffin_jax.benchmarks.timing import Compilation, Timing, compilation

Row = dict[str, Any]


def random_prompts(vocab_size: int, tokens: int, rows: int = 1) -> list[list[int]]:
    """Returns the token ids from all over the vocabulary, the same every time."""
    return np.random.default_rng(0).integers(0, vocab_size, (rows, tokens)).tolist()


def warm(stack: Stack, prompts: Prompts, tokens: int) -> dict[str, Any]:
    """Compiles all that a generation needs; what that took, for a row."""
    begin = time.perf_counter()
    with compilation() as compiled:
        stack.warm(prompts, tokens)
    return {"first_seconds": time.perf_counter() - begin, "compile": compiled.to_dict()}


def timed(stack: Stack, prompts: Prompts, tokens: int, times: dict[int, float]) -> None:
    """Generates once, and puts into `times` after how many seconds so many tokens were there."""
    begin = time.perf_counter()

    def mark(count):
        times[count] = time.perf_counter() - begin

    stack.generate(prompts, tokens, mark)


def measure_generation(
    subject: Subject,
    stack: Stack,
    limits: Limits,
    *,
    prompt: int,
    tokens: int,
    batch_size: int = 1,
    repeats: int = 3,
) -> Row:
    """Times prefill (a prompt in, its first token out) and decoding, as a user of the stack has them.

    Seconds per token are those of one whole generation after its first token, over its tokens.
    """
    prompts = random_prompts(subject.config.vocab_size, prompt, batch_size)
    compiled = warm(stack, prompts, tokens)
    first, rest = [], []
    for _ in range(repeats):
        times: dict[int, float] = {}
        timed(stack, prompts, tokens, times)
        first.append(times[1])
        rest.append((times[tokens] - times[1]) / max(tokens - 1, 1))
    reading, step = Timing.of(first), Timing.of(rest)
    cost = step_cost(subject, prompt + tokens // 2, batch_size, stack.copies)
    flops = counting.prefill_flops(subject.config, batch_size, prompt)
    return {
        "what": "generation",
        "prompt": prompt,
        "tokens": tokens,
        "batch_size": batch_size,
        "first_token_seconds": reading.to_dict(),
        "prefill_flops": flops,
        "prefill_matmul_share": limits.shares(reading.median, 0, flops, subject.dtype)[
            "matmul_share"
        ],
        "seconds_per_token": step.to_dict(),
        "tokens_per_second": batch_size / step.median if step.median else 0.0,
        "floor_seconds": limits.floor_seconds(*cost, subject.dtype),
        "peak_bytes": stack.peak_bytes(),
        **limits.shares(step.median or float("inf"), *cost, subject.dtype),
        **compiled,
    }


def measure_latency(
    subject: Subject,
    stack: Stack,
    limits: Limits,
    *,
    prompt: int,
    tokens: list[int],
    most: int,
    repeats: int = 3,
    repeat_most: int = 512,
) -> Iterator[Row]:
    """Yields seconds from a prompt's arrival until N tokens are there, for every N of `tokens` up
    to `most`.

    One long generation gives all rows, and `repeats - 1` short ones of `repeat_most` tokens repeat
    those up to there. A row that memory does not suffice for says so.
    """
    prompts = random_prompts(subject.config.vocab_size, prompt)
    wanted = [count for count in tokens if count <= most]
    compiled = Compilation().to_dict()
    runs: list[dict[int, float]] = [{}]
    failure = None
    try:
        compiled = warm(stack, prompts, max(wanted))
        for _ in range(repeats - 1):
            runs.append({})
            timed(stack, prompts, min(repeat_most, max(wanted)), runs[-1])
        timed(stack, prompts, max(wanted), runs[0])
    except OutOfMemory as error:
        failure = str(error)
    before = 1
    for count in wanted:
        seconds = [run[count] for run in runs if count in run]
        row = {"what": "latency", "prompt": prompt, "tokens_sampled": count, "batch_size": 1}
        if not seconds:
            yield row | {"status": "out of memory", "message": failure}
            continue
        steps = [(r[count] - r[before]) / (count - before) for r in runs if {count, before} <= {*r}]
        cost = step_cost(subject, prompt + (before + count) // 2, 1, stack.copies)
        step = Timing.of(steps) if steps else Timing.of([0.0])
        yield row | {
            "seconds": Timing.of(seconds).to_dict(),
            "first_token_seconds": Timing.of([run[1] for run in runs if 1 in run]).to_dict(),
            "seconds_per_token": step.to_dict(),  # since the row before
            "floor_seconds": limits.floor_seconds(*cost, subject.dtype),
            "peak_bytes": stack.peak_bytes(),
            **limits.shares(step.median or float("inf"), *cost, subject.dtype),
            **compiled,
        }
        before = count


def step_cost(
    subject: Subject, position: int, batch_size: int, copies: int = 1
) -> tuple[float, float]:
    """Returns the bytes and FLOPs of one decoding step, counted from the shapes.

    Of several devices it is what they read together, weights in so many copies, keys and values once.
    """
    config = subject.config
    weights = counting.weight_bytes_per_step(config, subject.weight_bytes(), subject.dtype)
    state = batch_size * counting.state_bytes_per_step(config, position, subject.dtype)
    return copies * weights + state, counting.decode_flops(config, batch_size, position)
