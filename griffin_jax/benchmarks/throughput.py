"""Sampled tokens per second over batch sizes, until memory runs out."""

from collections.abc import Iterator, Sequence
from typing import Any

from griffin_jax.benchmarks import counting, memory
from griffin_jax.benchmarks.decode import measure_decoding, measure_prefill
from griffin_jax.benchmarks.generation import measure_generation
from griffin_jax.benchmarks.machine import Limits
from griffin_jax.benchmarks.stacks import Stack
from griffin_jax.benchmarks.stacks.griffin import GriffinStack
from griffin_jax.benchmarks.subject import Subject
from griffin_jax.host import available_memory

Row = dict[str, Any]


def measure_throughput(
    subject: Subject,
    stack: Stack,
    limits: Limits,
    *,
    batch_sizes: Sequence[int],
    prompt: int,
    tokens: int,
    prefill_tokens: int,
    repeats: int,
) -> Iterator[Row]:
    """Yields a row per batch size; the first that memory does not suffice for ends the search, and
    says so.

    Our own stack decodes from a state that stands at `prompt`, and reads real prompts, timed apart,
    in batches of up to `prefill_tokens` tokens. A peer reads real prompts in every batch.

    Args:
      subject: What is measured.
      stack: It, loaded.
      limits: The limits of the device.
      batch_sizes: Ascending.
      prompt: Tokens before the first sampled one.
      tokens: Sampled and timed in each row.
      prefill_tokens: Tokens of the largest batch whose prefill is timed.
      repeats: The number of repetitions of prefill, and of a peer's generation.
    """
    for batch_size in batch_sizes:
        row = {"what": "throughput", "prompt": prompt, "batch_size": batch_size}
        try:
            if isinstance(stack, GriffinStack):
                row |= measure_decoding(
                    subject, stack, limits, prompt, tokens, batch_size=batch_size
                ) | {"what": "throughput"}
                if batch_size * prompt <= prefill_tokens:
                    read = measure_prefill(subject, stack, limits, prompt, batch_size, repeats)
                    row["prefill_tokens_per_second"] = read["tokens_per_second"]
                    row["prefill_seconds"] = read["seconds"]
                    row["prefill_matmul_share"] = read["matmul_share"]
            else:
                row |= measure_generation(
                    subject,
                    stack,
                    limits,
                    prompt=prompt,
                    tokens=tokens,
                    batch_size=batch_size,
                    repeats=repeats,
                ) | {"what": "throughput"}
                seconds = row["first_token_seconds"]["median"]
                row["prefill_tokens_per_second"] = batch_size * prompt / seconds
        except memory.OutOfMemory as error:
            fits = most_rows(subject, prompt + tokens)
            message = str(error)
            if fits is not None:
                message += f"; by their bytes alone, {fits} rows would fit beside the weights"
            yield row | {"status": "out of memory", "message": message}
            return
        yield row


def most_rows(subject: Subject, tokens: int) -> int | None:
    """Returns how many rows' states, with their logits, the device holds beside the weights."""
    limit = memory.limit_bytes() or available_memory()
    if limit is None:
        return None
    itemsize = 4 if subject.dtype == "float32" else 2
    row = counting.cache_bytes(subject.config, tokens, itemsize) + 4 * subject.config.vocab_size
    return max(limit - subject.weight_bytes(), 0) // row
