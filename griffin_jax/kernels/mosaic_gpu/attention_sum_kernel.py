"""The sum of the parts in which heads have read their rings, in the next product's order, on Hopper.

A warp has a head of a row, whose parts it asks for all at once.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from griffin_jax.kernels.mosaic_gpu import launch, stores
from griffin_jax.kernels.mosaic_gpu.operand import DIVISOR, LARGEST, operand_type, reorder
from griffin_jax.kernels.mosaic_gpu.plan import PIECE


@functools.partial(jax.jit, static_argnames=("heads", "dtype", "operand", "interpret"))
def add_up(
    mixed: jax.Array,
    sums: jax.Array,
    *,
    heads: int,
    dtype: DTypeLike,
    operand: bool,
    interpret=False,
) -> jax.Array:
    """Computes what heads have mixed, of what `attention_kernel.attend_to_rings` leaves in parts.

    Args:
      mixed: float32[B, P, M, 256], values times 2^(score - largest of the part).
      sums: float32[B, P, 2, S], the largest score and the sum of 2^(score - largest).
      heads: How many of M and S count, an even number.
      dtype: The dtype of activations, of 16 bits.
      operand: Whether products with 4-bit weights read the result, see `operand.operand`.
      interpret: Parameters of Pallas' interpreter, or False.

    Returns:
      [B, heads 256] in `dtype`, or an operand, of which rows beyond B are left as they are.
    """
    rows, parts = mixed.shape[:2]
    unit = math.gcd(heads, stores.WARPS)
    layout = stores.layout_of_pieces(unit)

    def body(mixed_gmem, sums_gmem, z_gmem):
        row, first = lax.axis_index("row"), lax.axis_index("heads") * unit
        own = pl.ds(first, unit)

        def load(ref, layout):
            return launch.load(ref, layout, interpret)

        def across(numbers):
            found = lax.broadcast_in_dim(numbers, (unit, PIECE), (0,))
            return found if interpret else plgpu.layout_cast(found, layout)

        scores, totals = (
            [load(sums_gmem.at[row, part, which, own], layout.reduce(1)) for part in range(parts)]
            for which in range(2)
        )
        values = [load(mixed_gmem.at[row, part, own], layout) for part in range(parts)]
        largest = functools.reduce(jnp.maximum, scores)
        shares = [jnp.exp2(score - largest) for score in scores]
        total = sum(share * each for share, each in zip(shares, totals, strict=True))
        weighted = (across(s / total) * value for s, value in zip(shares, values, strict=True))
        z = functools.reduce(jnp.add, weighted)
        if not operand:
            z_gmem[row, own] = z.astype(dtype)
            return
        z = jnp.clip(z * (1.0 / DIVISOR), -LARGEST, LARGEST).astype(jnp.float16)
        if interpret:
            z_gmem[row, own] = reorder(z)
        else:
            stores.store_pieces(z, z_gmem, (row * heads + first) * PIECE)

    padded = operand_type(rows, heads * PIECE)
    out = (padded.shape[0], padded.dtype) if operand else (rows, dtype)
    z = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((out[0], heads, PIECE), out[1]),
        grid=(rows, heads // unit),
        grid_names=("row", "heads"),
        interpret=interpret,
        kernel_name="attention_sum",
        compiler_params=launch.LANES,
    )(mixed, sums)
    return z.reshape(-1, heads * PIECE)
