"""How a product of few rows with 16-bit weights is shared out among a GPU's blocks."""

import dataclasses
import functools
from collections.abc import Sequence

from griffin_jax.kernels.mosaic_gpu.plan import TILE

MAX_COLUMNS = 64  # rows of x that a block takes
SWAPPED = 32  # columns of a tile that its halves tell one another at a time
_LEAST = 64  # inputs of a piece, as many as 128 bytes hold
_SMALLEST = 8  # rows of x that the tensor cores take
_MULTIPROCESSORS = 132
_SHARED_BYTES = 232448  # of a block
_PIECE_BYTES = 32768  # of weights, about
_MAX_STAGES = 8
# What a multiprocessor does in a nanosecond, on an H200; see `plan`.
_MEMORY_BYTES = 30.0
_CACHE_BYTES = 50.0
_PRODUCTS = 2500.0
_WAVE = 2000.0  # nanoseconds of a block beside that
_SUM_BYTES = 3000.0  # of sums that blocks add up apart, by the whole GPU
_LAUNCH = 2300.0  # nanoseconds that adding up takes where nothing else would be launched there


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
    if width % _LEAST or any(out % TILE for out in features):
        sizes = ", ".join(f"{out} x {width}" for out in features)
        return f"weights of {sizes} (needs multiples of {TILE} x {_LEAST})"
    return None


@functools.cache
def dense_plan(
    rows: int, features: tuple[int, ...], width: int, gated: bool = False, to_kernel: bool = False
) -> DensePlan:
    """Returns the plan for so many rows of x and weights of so many outputs and inputs.

    Another kernel, if the products go `to_kernel`, does not add up what is split.
    """
    columns = max(_SMALLEST, 1 << (rows - 1).bit_length())
    best = None
    for tiles in (1, 2, 3):
        if any(out % (TILE * tiles // (1 + gated)) for out in features):
            continue
        for split in (1,) if gated else (1, 2, 3, 4):
            if width % (_LEAST * split):
                continue
            blocks = sum(features) // (TILE * tiles) * split
            waves = -(-blocks // _MULTIPROCESSORS)
            cost = waves * (width // split * _input_cost(columns, tiles) + _WAVE)
            if split > 1:
                cost += 8 * split * rows * sum(features) / _SUM_BYTES
                cost += _LAUNCH * len(features) * to_kernel
            if best is None or cost < best[0]:
                best = cost, tiles, split
    assert best is not None
    _, tiles, split = best
    span = 256
    while span > _LEAST and (width // split % span or TILE * tiles * span * 2 > 1.5 * _PIECE_BYTES):
        span //= 2
    room = _SHARED_BYTES - 2048 - gated * swap_bytes(tiles)
    stages = min(room // stage_bytes(columns, tiles, span), _MAX_STAGES, width // split // span)
    return DensePlan(columns, tiles, split, span, stages, gated)


def _input_cost(columns, tiles):
    """Nanoseconds of a block for one of the inputs."""
    weights = TILE * tiles
    return max(
        2 * weights / _MEMORY_BYTES,
        2 * (weights + columns) / _CACHE_BYTES,
        weights * columns / _PRODUCTS,
    )


def stage_bytes(columns: int, tiles: int, span: int) -> int:
    """Returns the bytes of shared memory for a piece of weights and of x."""
    return 2 * span * (TILE * tiles + columns)


def swap_bytes(tiles: int) -> int:
    """Returns the bytes of shared memory for what the halves of a gated block's tiles tell one
    another.
    """
    return tiles * (TILE // 2 * SWAPPED * 4 + TILE * 2)
