"""What products with 4-bit weights read: x in float16, in the order in which threads take weights."""

import jax
import jax.numpy as jnp

from griffin_jax.kernels.mosaic_gpu.plan import PIECE, padded_rows

DIVISOR = 16.0  # of x, by which x up to a million fits; the kernel takes 16 times the scales
LARGEST = 65504.0  # of float16


def operand(x: jax.Array) -> jax.Array:
    """Returns x [n, in] as float16[padded n, in], what `packed_kernel.multiply` takes."""
    rows = x.shape[0]
    halves = jnp.clip(x.astype(jnp.float32) / DIVISOR, -LARGEST, LARGEST).astype(jnp.float16)
    return reorder(jnp.pad(halves, ((0, padded_rows(rows) - rows), (0, 0))))


def reorder(x: jax.Array) -> jax.Array:
    """Puts x [n, in] in the order in which threads read weights.

    A step of the tensor cores multiplies 16 inputs, of which a thread has numbers 2t, 2t + 1, 2t + 8
    and 2t + 9 of a row, t its place among four. It takes them from 64 that lie side by side.
    """
    n, width = x.shape
    # In few dimensions: XLA's cost model weighs every tiling of a transpose that it may fuse, and of
    # one in seven these are so many that a call's program took three times as long to compile.
    x = x.reshape(n * width // PIECE, 4, PIECE // 8, 2)
    return x.transpose(0, 2, 1, 3).reshape(n, width)


def operand_type(rows: int, width: int) -> jax.ShapeDtypeStruct:
    """Returns the type of an operand of x [rows, width], with an axis for each part of the order.

    Of 64 inputs, which are number `[..., q, :]` of the four in a piece, it holds [4, 4, 2, q, 2].
    """
    return jax.ShapeDtypeStruct(
        (padded_rows(rows), width // PIECE, 4, 4, 2, PIECE // 64, 2), jnp.float16
    )
