"""How the rows and inputs of weights are shared out among a GPU's blocks, whatever the weights are in.

The figures are an H200's.
"""

from collections.abc import Callable, Sequence

import jax

TILE = 64  # rows of a weight, of one warpgroup's tensor cores
FEWEST_COLUMNS = 8  # rows of x that the tensor cores take
SHARED_BYTES = 232448  # of a block
# What a multiprocessor does in a nanosecond: its share of the memory's bandwidth, what it reads from the
# second-level cache, and what its tensor cores multiply.
MEMORY_BYTES = 30.0
CACHE_BYTES = 50.0
PRODUCTS = 2500.0
_MULTIPROCESSORS = 132
_WAVE = 2000.0  # nanoseconds of a block beside its inputs'
_SUM_BYTES = 3000.0  # of sums that blocks add up apart, by the whole GPU
_LAUNCH = 2300.0  # nanoseconds that adding up takes where nothing else would be launched there


def added_up(parts: jax.Array) -> jax.Array:
    """Returns the sum [n, out] of parts [parts, n, out], each of some of the inputs."""
    return parts.sum(axis=0) if len(parts) > 1 else parts[0]


def power_of_two(rows: int) -> int:
    """Returns in how many columns so few rows of x are multiplied."""
    return max(FEWEST_COLUMNS, 1 << (rows - 1).bit_length())


def misfit(features: Sequence[int], width: int, piece: int) -> str | None:
    """Returns None, or what weights of so many outputs and inputs lack to be read in pieces."""
    if width % piece or any(out % TILE for out in features):
        sizes = ", ".join(f"{out} x {width}" for out in features)
        return f"weights of {sizes} (needs multiples of {TILE} x {piece})"
    return None


def tiles_and_split(
    rows: int,
    columns: int,
    features: Sequence[int],
    width: int,
    piece: int,
    gated: bool,
    to_kernel: bool,
    input_cost: Callable[[int, int], float],
) -> tuple[int, int]:
    """Returns of how many tiles a block is, and in how many parts the inputs have blocks of their own.

    Blocks that run at once, one a multiprocessor, should end together: what counts is how many
    weights a multiprocessor multiplies in all, with what its blocks cost beside them.

    Args:
      rows: Rows of x.
      columns: Those of a block, of which `rows` is a multiple if it has more.
      features: The outputs of each weight.
      width: The inputs.
      piece: Inputs of which each part is a multiple.
      gated: Whether a tile is of two weights, of which one gates the other.
      to_kernel: Whether the products go to another kernel, which does not add up what is split.
      input_cost: Returns the nanoseconds of a block for one of the inputs, from columns and tiles.
    """
    best = None
    for tiles in (1, 2, 3):
        if any(out % (TILE * tiles // (1 + gated)) for out in features):
            continue
        for split in (1,) if gated else (1, 2, 3, 4):
            if width % (piece * split):
                continue
            blocks = sum(features) // (TILE * tiles) * split * max(1, rows // columns)
            waves = -(-blocks // _MULTIPROCESSORS)
            cost = waves * (width // split * input_cost(columns, tiles) + _WAVE)
            if split > 1:
                cost += 8 * split * rows * sum(features) / _SUM_BYTES
                cost += _LAUNCH * len(features) * to_kernel
            if best is None or cost < best[0]:
                best = cost, tiles, split
    assert best is not None
    return best[1], best[2]
