"""How a product of few rows with 16-bit weights is shared out among a GPU's blocks."""

import dataclasses
import functools
from collections.abc import Sequence

from griffin_jax.kernels.mosaic_gpu.sharing_out import (
    CACHE_BYTES,
    MEMORY_BYTES,
    PRODUCTS,
    SHARED_BYTES,
    TILE,
    misfit,
    power_of_two,
    tiles_and_split,
)

MAX_COLUMNS = 64  # rows of x that a block takes
SWAPPED = 32  # columns of a tile that its halves tell one another at a time
_LEAST = 64  # inputs of a piece, as many as 128 bytes hold
_PIECE_BYTES = 32768  # of weights, about
_MAX_STAGES = 8


@dataclasses.dataclass(frozen=True)
class DensePlan:
    """A block has `tiles` warpgroups that multiply and one that copies.

    Attributes:
      columns: Rows of x of a block.
      tiles: Tiles of 64 rows of the weight.
      split: Parts of the inputs with blocks of their own, added up by whoever reads.
      span: Inputs of a piece.
      stages: Pieces that are on their way or at work.
      gated: A tile is of two weights, 32 rows of each, of which one gates the other.
    """

    columns: int
    tiles: int
    split: int
    span: int
    stages: int
    gated: bool = False


def unsupported_reason(rows: int, features: Sequence[int], width: int) -> str | None:
    """Returns None, or why no plan serves so many rows and weights of so many outputs and inputs."""
    if rows > MAX_COLUMNS:
        return f"{rows} rows (needs at most {MAX_COLUMNS})"
    return misfit(features, width, _LEAST)


@functools.cache
def dense_plan(
    rows: int, features: tuple[int, ...], width: int, gated: bool = False, to_kernel: bool = False
) -> DensePlan:
    """Returns the plan for so many rows of x and weights of so many outputs and inputs.

    Another kernel, if the products go `to_kernel`, does not add up what is split.
    """
    columns = power_of_two(rows)
    tiles, split = tiles_and_split(
        rows, columns, features, width, _LEAST, gated, to_kernel, _input_cost
    )
    span = 256
    while span > _LEAST and (width // split % span or TILE * tiles * span * 2 > 1.5 * _PIECE_BYTES):
        span //= 2
    room = SHARED_BYTES - 2048 - gated * swap_bytes(tiles)
    stages = min(room // stage_bytes(columns, tiles, span), _MAX_STAGES, width // split // span)
    return DensePlan(columns, tiles, split, span, stages, gated)


def _input_cost(columns, tiles):
    """Nanoseconds of a block for one of the inputs."""
    weights = TILE * tiles
    return max(
        2 * weights / MEMORY_BYTES,
        2 * (weights + columns) / CACHE_BYTES,
        weights * columns / PRODUCTS,
    )


def stage_bytes(columns: int, tiles: int, span: int) -> int:
    """Returns the bytes of shared memory for a piece of weights and of x."""
    return 2 * span * (TILE * tiles + columns)


def swap_bytes(tiles: int) -> int:
    """Returns the bytes of shared memory for what the halves of a gated block's tiles tell one
    another.
    """
    return tiles * (TILE // 2 * SWAPPED * 4 + TILE * 2)
