"""Prefill and decoding of one row: seconds, milliseconds per token, and what bounds them."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.benchmarks import counting, kernel_profile, memory
from griffin_jax.benchmarks.machine import Limits
from griffin_jax.benchmarks.timing import Timing, compilation, measure
from griffin_jax.inference import Sampler, prefill
from griffin_jax.inference.sampler import Context
from griffin_jax.language_model import LanguageModel


def random_prompt(lm: LanguageModel, tokens: int, seed: int = 0) -> list[int]:
    """Token ids from all over the vocabulary."""
    return np.random.default_rng(seed).integers(0, lm.config.vocab_size, tokens).tolist()


def measure_prefill(
    lm: LanguageModel, limits: Limits, tokens: int, batch_size: int, repeats: int
) -> dict[str, Any]:
    """Reading a prompt into a state, from an idle device to the state's being there."""
    prompts = [random_prompt(lm, tokens, seed) for seed in range(batch_size)]

    def read():
        state = prefill.fresh_state(lm.model, lm.params, batch_size, tokens)
        return prefill.read(lm.model, lm.params, state, prompts)

    with memory.meeting_limits():
        begin = time.perf_counter()
        with compilation() as compiled:
            jax.block_until_ready(read())
        first = time.perf_counter() - begin
        timing = measure(read, warmup=1, repeats=repeats)
    flops = counting.prefill_flops(lm.config, batch_size, tokens)
    num_bytes = counting.weight_bytes_per_step(lm.config, lm.params)
    return {
        "prompt": tokens,
        "seconds": timing.to_dict(),
        "tokens_per_second": tokens * batch_size / timing.median,
        "first_seconds": first,
        "compile": compiled.to_dict(),
        **limits.shares(timing.median, num_bytes, flops, lm.dtype.name),
    }


def measure_decoding(
    lm: LanguageModel,
    limits: Limits,
    position: int,
    tokens: int,
    *,
    batch_size: int = 1,
    burst: int = 32,
    profile: bool = False,
) -> dict[str, Any]:
    """Greedy decoding in bursts from a state that stands at `position`.

    What the state holds is zero, which costs what anything else costs. Two bursts warm up.

    Args:
      lm: The model.
      limits: Of the device.
      position: How many tokens the state is taken to have read.
      tokens: How many are drawn and timed.
      batch_size: Rows.
      burst: Tokens in one dispatch.
      profile: Trace one burst more, for the time per kernel.
    """
    sampler = Sampler(lm.config, lm.params, dtype=lm.dtype, burst=burst)
    bursts = max(tokens // burst, 1)
    total = burst * (bursts + 2 + profile)
    with memory.meeting_limits():
        state = prefill.fresh_state(lm.model, lm.params, batch_size, position + total + 1)
        state = state.replace(position=jnp.full_like(state.position, position))
        state_bytes = memory.tree_bytes(state.blocks)
        read = counting.state_bytes_per_step(lm.config, state, position)
        context = Context(
            state, tokens=((0,) * position,) * batch_size, read=(position,) * batch_size
        )
        generation = sampler.start([[1]] * batch_size, context=context, max_new_tokens=total)
        del state, context
        begin = time.perf_counter()
        with compilation() as compiled:
            generation.advance(burst)
        first = time.perf_counter() - begin
        generation.advance(burst)
        seconds = []
        for _ in range(bursts):
            begin = time.perf_counter()
            generation.advance(burst)
            seconds.append(time.perf_counter() - begin)
    timing = Timing.of(seconds, per=burst)
    flops = counting.decode_flops(lm.config, batch_size, position)
    num_bytes = counting.weight_bytes_per_step(lm.config, lm.params) + read
    row = {
        "position": position,
        "batch_size": batch_size,
        "tokens": burst * bursts,
        "burst": burst,
        "seconds_per_token": timing.to_dict(),
        "tokens_per_second": batch_size / timing.median,
        "floor_seconds": limits.floor_seconds(num_bytes, flops, lm.dtype.name),
        "first_seconds": first,
        "compile": compiled.to_dict(),
        "state_bytes": state_bytes,
        "peak_bytes": memory.peak_bytes(),
        **limits.shares(timing.median, num_bytes, flops, lm.dtype.name),
    }
    if profile:
        kernels = kernel_profile.profile(lambda: generation.advance(burst) or jnp.zeros(()))
        row["kernels"] = [dataclasses.asdict(kernel) for kernel in kernels]
    return row
