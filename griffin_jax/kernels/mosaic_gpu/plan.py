"""How a product with 4-bit weights is shared out among a GPU's blocks and their warpgroups."""

import dataclasses
import functools
import math
from collections.abc import Sequence

from griffin_jax.kernels.mosaic_gpu.sharing_out import (
    CACHE_BYTES,
    FEWEST_COLUMNS,
    MEMORY_BYTES,
    PRODUCTS,
    SHARED_BYTES,
    TILE,
    misfit,
    power_of_two,
    tiles_and_split,
)

PIECE = 256  # inputs that a warpgroup multiplies at a time
MAX_COLUMNS = 128  # rows of x that a block takes
_TABLE_BYTES = 32768
_MAX_STAGES = 6
_LOOKUPS = 60.0  # weights that a multiprocessor looks up in a nanosecond
_PRODUCTS_UNAHEAD = 2300.0  # where a tile is looked up when the one before it is multiplied


@dataclasses.dataclass(frozen=True)
class Plan:
    """A block has `tiles` x `parts` warpgroups that multiply and one that copies.

    Attributes:
      columns: Rows of x of a block.
      tiles: Tiles of 64 rows of the weight.
      parts: Parts of the inputs that are added up inside of a block.
      split: Parts of the inputs with blocks of their own, added up by whoever reads.
      stages: Pieces of the inputs that are on their way or at work.
      scales: Scales of a row in a piece.
      ahead: Whether to look up a tile before the one before it goes to the tensor cores.
      gated: A tile is of two weights, 32 rows of each, of which one gates the other.
    """

    columns: int
    tiles: int
    parts: int
    split: int
    stages: int
    scales: int
    ahead: bool
    gated: bool = False

    @property
    def consumers(self) -> int:
        """Warpgroups that multiply."""
        return self.tiles * self.parts


def padded_rows(rows: int) -> int:
    """Returns to how many rows x is padded."""
    if rows > MAX_COLUMNS:
        return -(-rows // MAX_COLUMNS) * MAX_COLUMNS
    return power_of_two(rows)


def unsupported_reason(features: Sequence[int], width: int) -> str | None:
    """Returns None, or why no plan serves weights of so many outputs and inputs."""
    return misfit(features, width, PIECE)


@functools.cache
def plan(
    rows: int,
    features: tuple[int, ...],
    width: int,
    scales: int,
    gated: bool = False,
    to_kernel: bool = False,
) -> Plan:
    """Returns the plan for x of so many rows, padded, and weights of so many outputs and inputs.

    Another kernel, if the products go `to_kernel`, does not add up what is split.
    """
    columns = min(rows, MAX_COLUMNS)
    tiles, split = tiles_and_split(
        rows, columns, features, width, PIECE, gated, to_kernel, _input_cost
    )
    found = _with_stages(columns, tiles, split, width // split // PIECE, scales)
    return dataclasses.replace(found, gated=gated)


def _input_cost(columns, tiles):
    """Nanoseconds of a block for one of the inputs."""
    weights = TILE * tiles
    num_bytes = weights * 9 / 16
    looks_ahead = columns < 64 or _looks_ahead(columns, tiles)
    products = PRODUCTS if looks_ahead else _PRODUCTS_UNAHEAD
    return max(
        num_bytes / MEMORY_BYTES,
        (num_bytes + 2 * columns) / CACHE_BYTES,
        weights / _LOOKUPS,
        weights * columns / products,
    )


def _looks_ahead(columns, tiles):
    """Returns whether a thread has registers for it, and use: few columns are multiplied in no
    time.
    """
    return columns >= 64 and columns * tiles < 384


def _with_stages(columns, tiles, split, pieces, scales):
    """Warpgroups for each of the inputs' parts as far as registers and shared memory go."""
    most = 4 if columns <= 16 else 3 if columns <= 32 else 2 if columns <= 64 else 1
    for parts in (4, 2, 1) if columns == FEWEST_COLUMNS else (2, 1):
        if parts * tiles > max(most, tiles) or pieces % parts:
            continue
        room = SHARED_BYTES - _TABLE_BYTES - 1024 - sum_bytes(columns, tiles, parts)
        stages = min(room // stage_bytes(columns, tiles, parts, scales), _MAX_STAGES)
        if stages >= min(2, pieces // parts):
            stages = max(1, min(stages, pieces // parts))
            return Plan(columns, tiles, parts, split, stages, scales, _looks_ahead(columns, tiles))
    raise AssertionError((columns, tiles, split))


def stage_bytes(columns: int, tiles: int, parts: int, scales: int) -> int:
    """Returns the bytes of shared memory for weights, scales and x."""
    rows = TILE * tiles
    return parts * (rows * (PIECE // 2 + 4 * scales) + columns * PIECE * 2)


def sum_bytes(columns: int, tiles: int, parts: int) -> int:
    """Returns the bytes of shared memory for the sums of all parts of the inputs but the first."""
    return (parts - 1) * math.prod((TILE, tiles, columns, 4))
