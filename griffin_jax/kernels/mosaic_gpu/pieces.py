"""What kernels that read several weights in one launch share: whose rows a block has, and the copying ahead."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu


def of_weight(
    block: jax.Array, begins: Sequence[int], share: int, run: Callable[[int, Any], None]
) -> None:
    """Runs `run(index, row)` for the weight that a block is of, and its first row there.

    Args:
      block: The block's number.
      begins: The first block of each weight, and the number of all.
      share: Rows of a block.
      run: What is to be done.
    """
    for index, begin in enumerate(begins[:-1]):
        here = (block >= begin) & (block < begins[index + 1])
        pl.when(here)(functools.partial(run, index, (block - int(begin)) * share))


def copy_ahead(fetch: Callable[[Any, Any], None], steps: int, stages: int, empty: Any) -> None:
    """Fetches all pieces, so many ahead; `drain` waits for the last.

    Args:
      fetch: Begins to copy a piece into a slot.
      steps: Pieces.
      stages: Slots.
      empty: A barrier for each slot, which is complete when the slot may be overwritten.
    """
    for i in range(min(stages, steps)):
        fetch(i, i)

    def step(i, _):
        slot = lax.rem(i, stages)
        plgpu.barrier_wait(empty.at[slot])
        fetch(i, slot)

    lax.fori_loop(stages, steps, step, None)


def drain(steps: int, stages: int, empty: Any) -> None:
    """Waits until the last pieces are used: every completion of a barrier has to be waited for."""
    for i in range(max(0, steps - stages), steps):
        plgpu.barrier_wait(empty.at[i % stages])
