"""How a product with 4-bit weights is shared out among a GPU's blocks and their warpgroups."""

import dataclasses
import functools
import math
from collections.abc import Sequence

TILE = 64  # rows of a weight, of one warpgroup's tensor cores
PIECE = 256  # inputs that a warpgroup multiplies at a time
MAX_COLUMNS = 128  # rows of x that a block takes
_SMALLEST = 8  # rows of x that the tensor cores take
_MULTIPROCESSORS = 132
_SHARED_BYTES = 232448  # of a block
_TABLE_BYTES = 32768
_MAX_STAGES = 6
# What a multiprocessor does in a nanosecond, on an H200: its share of the memory's bandwidth, what it
# reads from the second-level cache, weights that it looks up, and what its tensor cores multiply.
_MEMORY_BYTES = 30.0
_CACHE_BYTES = 50.0
_LOOKUPS = 60.0
_PRODUCTS = 2500.0
_PRODUCTS_UNAHEAD = 2300.0  # where a tile is looked up when the one before it is multiplied
_WAVE = 2000.0  # nanoseconds of a block beside that
_SUM_BYTES = 3000.0  # of sums that blocks add up apart, by the whole GPU
_LAUNCH = 2300.0  # nanoseconds that adding up takes where nothing else would be launched there


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
    return max(_SMALLEST, 1 << (rows - 1).bit_length())


def unsupported_reason(features: Sequence[int], width: int) -> str | None:
    """Returns None, or why no plan serves weights of so many outputs and inputs."""
    if width % PIECE or any(out % TILE for out in features):
        sizes = ", ".join(f"{out} x {width}" for out in features)
        return f"weights of {sizes} (needs multiples of {TILE} x {PIECE})"
    return None


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

    Blocks that run at once, one a multiprocessor, should end together: what counts is how many
    weights a multiprocessor multiplies in all, with what its blocks cost beside them. Another kernel,
    if the products go `to_kernel`, does not add up what is split.
    """
    columns = min(rows, MAX_COLUMNS)
    best = None
    for tiles in (1, 2, 3):
        if any(out % (TILE * tiles // (1 + gated)) for out in features):
            continue
        for split in (1,) if gated else (1, 2, 3, 4):
            if width % (PIECE * split):
                continue
            blocks = sum(features) // (TILE * tiles) * split * (rows // columns)
            waves = -(-blocks // _MULTIPROCESSORS)
            cost = waves * (width // split * _input_cost(columns, tiles) + _WAVE)
            if split > 1:
                cost += 8 * split * rows * sum(features) / _SUM_BYTES
                cost += _LAUNCH * len(features) * to_kernel
            if best is None or cost < best[0]:
                best = cost, tiles, split
    assert best is not None
    _, tiles, split = best
    found = _with_stages(columns, tiles, split, width // split // PIECE, scales)
    return dataclasses.replace(found, gated=gated)


def _input_cost(columns, tiles):
    """Nanoseconds of a block for one of the inputs."""
    weights = TILE * tiles
    num_bytes = weights * 9 / 16
    looks_ahead = columns < 64 or _looks_ahead(columns, tiles)
    products = _PRODUCTS if looks_ahead else _PRODUCTS_UNAHEAD
    return max(
        num_bytes / _MEMORY_BYTES,
        (num_bytes + 2 * columns) / _CACHE_BYTES,
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
    for parts in (4, 2, 1) if columns == _SMALLEST else (2, 1):
        if parts * tiles > max(most, tiles) or pieces % parts:
            continue
        room = _SHARED_BYTES - _TABLE_BYTES - 1024 - sum_bytes(columns, tiles, parts)
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
