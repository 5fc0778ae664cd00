"""Our own stack taken apart: prefill, decoding at any position, long prompts, time per kernel."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from griffin_jax.benchmarks import counting, kernel_profile, memory
from griffin_jax.benchmarks.generation import random_prompts, step_cost
from griffin_jax.benchmarks.machine import Limits
from griffin_jax.benchmarks.stacks.griffin import GriffinStack
from griffin_jax.benchmarks.subject import Subject
from griffin_jax.benchmarks.timing import Timing, compilation
from griffin_jax.inference import prefill
from griffin_jax.inference.engine import BURST, STREAM_SECONDS

Row = dict[str, Any]


def measure_prefill(
    subject: Subject,
    stack: GriffinStack,
    limits: Limits,
    tokens: int,
    batch_size: int,
    repeats: int,
) -> Row:
    """Times reading a prompt into a state, from an idle device until the state is there."""
    lm = stack.lm
    prompts = random_prompts(lm.config.vocab_size, tokens, batch_size)

    def read():
        begin = time.perf_counter()
        state = prefill.fresh_state(lm.model, lm.params, batch_size, tokens)
        jax.block_until_ready(prefill.read(lm.model, lm.params, state, prompts))
        return time.perf_counter() - begin

    with memory.meeting_limits():
        with compilation() as compiled:
            first = read()
        read()
        timing = Timing.of([read() for _ in range(repeats)])
    flops = counting.prefill_flops(lm.config, batch_size, tokens)
    calls = len(prefill.chunk_lengths(tokens, batch_size))
    num_bytes = (
        stack.copies
        * calls
        * counting.weight_bytes_per_chunk(lm.config, memory.tree_bytes(lm.params), lm.dtype)
    )
    return {
        "what": "prefill",
        "prompt": tokens,
        "batch_size": batch_size,
        "seconds": timing.to_dict(),
        "tokens_per_second": tokens * batch_size / timing.median,
        "floor_seconds": limits.floor_seconds(num_bytes, flops, subject.dtype),
        "peak_bytes": memory.peak_bytes(),
        "first_seconds": first,
        "compile": compiled.to_dict(),
        **limits.shares(timing.median, num_bytes, flops, subject.dtype),
    }


def measure_decoding(
    subject: Subject,
    stack: GriffinStack,
    limits: Limits,
    position: int,
    tokens: int,
    *,
    batch_size: int = 1,
    profile: bool = False,
) -> Row:
    """Times greedy decoding as `LanguageModel.sample` runs it, from a state that stands at `position`.

    Seconds are those from one burst's arrival to that of the next, while another is under way. Two
    bursts warm up, the first of them, which is compiled, alone; one is drawn after those that are
    timed, so that the last of them has one under way, too. On several devices the row also says what
    collectives take of a step, by a trace of one burst more: seconds and launches of a device, its
    waiting for the others included.

    Args:
      subject: What is measured.
      stack: It, loaded.
      limits: The limits of the device.
      position: How many tokens the state is taken to have read.
      tokens: How many are drawn and timed, rounded down to whole bursts.
      batch_size: Rows.
      profile: Trace one burst more, for the time per kernel.
    """
    burst = stack.burst
    bursts = max(tokens // burst, 1)
    with memory.meeting_limits():
        profile_bursts = int(profile) + (stack.devices > 1)
        generation = stack.start_at(position, batch_size, burst * (bursts + 3 + profile_bursts))
        begin = time.perf_counter()
        with compilation() as compiled:
            generation.advance(burst)
        first = time.perf_counter() - begin
        with contextlib.closing(generation.bursts()) as arrivals:
            next(arrivals)
            seconds = []
            for _ in range(bursts):
                begin = time.perf_counter()
                next(arrivals)
                seconds.append(time.perf_counter() - begin)
    timing = Timing.of(seconds, per=burst)
    cost = step_cost(subject, position, batch_size, stack.copies)
    row = {
        "what": "decode",
        "position": position,
        "batch_size": batch_size,
        "tokens": burst * bursts,
        "seconds_per_token": timing.to_dict(),
        "tokens_per_second": batch_size / timing.median,
        "floor_seconds": limits.floor_seconds(*cost, subject.dtype),
        "state_bytes": state_bytes(stack, position, batch_size),
        "peak_bytes": memory.peak_bytes(),
        "first_seconds": first,
        "compile": compiled.to_dict(),
        **limits.shares(timing.median, *cost, subject.dtype),
    }
    if stack.devices > 1:
        kernels = kernel_profile.profile(lambda: generation.advance(burst))
        total = kernel_profile.collectives(kernels)
        per = stack.devices * burst
        row["collectives"] = {"seconds": total.seconds / per, "launches": total.launches / per}
    if profile:
        kernels = kernel_profile.profile(lambda: generation.advance(burst))
        row["kernels"] = [dataclasses.asdict(kernel) for kernel in kernels]
    return row


def measure_streaming(
    subject: Subject, stack: GriffinStack, position: int, tokens: int, repeats: int
) -> Row:
    """Times a text streamed as the commands stream it, and the same text drawn in one dispatch.

    Streaming begins with a burst of one token, doubles it, and has the next burst under way while
    one is looked at. Both run one program, in turns, so that their ratio is that of the bursts.
    Without a tokenizer, as random weights have none, no text is made of the tokens.

    Args:
      subject: What is measured.
      stack: It, loaded.
      position: How many tokens the state is taken to have read.
      tokens: The number of tokens of the text.
      repeats: Texts of each kind, after one of each to warm up.
    """
    most = min(BURST, tokens)
    bursts = []

    def stream():
        generation = stack.start_at(
            position, 1, tokens, burst=tokens, most=most, seconds=STREAM_SECONDS
        )
        begin = time.perf_counter()
        bursts.append(0)
        for _ in generation.bursts():
            bursts[-1] += 1
        return time.perf_counter() - begin

    def draw():
        generation = stack.start_at(position, 1, tokens, burst=tokens)
        begin = time.perf_counter()
        generation.advance(tokens)
        return time.perf_counter() - begin

    with memory.meeting_limits():
        begin = time.perf_counter()
        with compilation() as compiled:
            draw()
        first = time.perf_counter() - begin
        stream()
        pairs = [(draw(), stream()) for _ in range(repeats)]
    whole, streamed = (Timing.of(list(seconds), per=tokens) for seconds in zip(*pairs, strict=True))
    return {
        "what": "streaming",
        "position": position,
        "tokens": tokens,
        "burst": most,
        "bursts": bursts[-1],
        "seconds_per_token": streamed.to_dict(),
        "whole_seconds_per_token": whole.to_dict(),
        "cost": 1 - whole.median / streamed.median,
        "first_seconds": first,
        "compile": compiled.to_dict(),
    }


def state_bytes(stack: GriffinStack, position: int, batch_size: int) -> int:
    """Returns the bytes of the state that decoding at this position holds, as it is laid out."""
    lm = stack.lm
    state = jax.eval_shape(
        lambda: prefill.fresh_state(lm.model, lm.params, batch_size, position + 1)
    )
    return memory.tree_bytes(state)


def read_long_prompt(
    subject: Subject, stack: GriffinStack, limits: Limits, tokens: int, parts: int = 10
) -> Iterator[Row]:
    """Reads one prompt of very many tokens into one state, part by part: time and memory of each."""
    lm = stack.lm
    state = prefill.fresh_state(lm.model, lm.params, 1, tokens)
    random = np.random.default_rng(0)
    chunk = max(prefill.call_lengths())
    part = max(tokens // parts // chunk, 1) * chunk
    warmed = prefill.fresh_state(lm.model, lm.params, 1, tokens)
    jax.block_until_ready(prefill.read(lm.model, lm.params, warmed, [[0] * chunk]))
    done = 0
    while done < tokens:
        count = min(part, tokens - done)
        ids = random.integers(0, lm.config.vocab_size, count).tolist()
        begin = time.perf_counter()
        state = jax.block_until_ready(prefill.read(lm.model, lm.params, state, [ids]))
        seconds = time.perf_counter() - begin
        done += count
        flops = counting.prefill_flops(lm.config, 1, count)
        yield {
            "what": "long prompt",
            "tokens_read": done,
            "batch_size": 1,
            "seconds": Timing.of([seconds]).to_dict(),
            "tokens_per_second": count / seconds,
            "state_bytes": memory.tree_bytes(state),
            "peak_bytes": memory.peak_bytes(),
            "matmul_share": limits.shares(seconds, 0, flops, subject.dtype)["matmul_share"],
        }
