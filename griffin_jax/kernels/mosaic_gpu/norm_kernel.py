"""The residual sum, the norm behind it and the order that the next product reads, on Hopper.

A block of threads has a row. A warp takes pieces of 256 numbers, of which a thread has those that
lie side by side in the operand of a product with 4-bit weights: it loads pairs and writes 16 bytes.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from griffin_jax.kernels.mosaic_gpu import launch, stores
from griffin_jax.kernels.mosaic_gpu.operand import DIVISOR, LARGEST, operand_type, reorder
from griffin_jax.kernels.mosaic_gpu.plan import PIECE

WIDTHS = 2 * PIECE  # of which a row's is a multiple
_MOST_GROUPS = 8


def _shares(pieces: int) -> tuple[int, int, int]:
    """Returns pieces of a warpgroup at a time, how often it takes so many, and warpgroups."""
    unit = math.gcd(pieces, stores.WARPS)
    shares = pieces // unit
    groups = max(count for count in range(1, _MOST_GROUPS + 1) if shares % count == 0)
    return unit, shares // groups, groups


@functools.partial(jax.jit, static_argnames=("eps", "operand", "interpret"))
def add_and_norm(
    x: jax.Array,
    parts: jax.Array | None,
    bias: jax.Array | None,
    scale: jax.Array,
    *,
    eps: float,
    operand: bool,
    interpret=False,
) -> tuple[jax.Array, jax.Array]:
    """Computes x + the sum of parts + bias, and its norm.

    Args:
      x: [n, D] in bfloat16 or float16, the residual stream; D is a multiple of 512.
      parts: [P, m, D] in float32 or the type of x, what is added to x; m is at least n, and what is
        beyond n does not count. None for nothing.
      bias: [D], which is added, too, or None.
      scale: [D], the norm's, around one.
      eps: What is added to the mean square.
      operand: Whether the norm is to be what a product with 4-bit weights reads, see
        `operand.operand`. Of that, rows beyond n are left as they are.
      interpret: Parameters of Pallas' interpreter, or False.

    Returns:
      The residual stream after, [n, D], which is x where nothing is added; and its norm [n, D] in
      the type of x, or an operand.
    """
    rows, width = x.shape
    added = [] if parts is None else [parts]
    count = len(added) and parts.shape[0]
    biases = [] if bias is None else [bias]
    unit, turns, groups = _shares(width // PIECE)
    layout = stores.layout_of_pieces(unit)

    def body(*refs):
        (x_gmem, scale_gmem), refs = refs[:2], refs[2:]
        parts_gmem, refs = refs[: len(added)], refs[len(added) :]
        bias_gmem, refs = refs[: len(biases)], refs[len(biases) :]
        z_gmem, *refs = refs
        *after_gmem, sums, ready = refs
        row, group = lax.axis_index("row"), lax.axis_index("group")
        shares = [pl.ds((group * turns + turn) * unit, unit) for turn in range(turns)]

        def load(ref):
            return launch.load(ref, layout, interpret).astype(jnp.float32)

        def total(own):
            found = load(x_gmem.at[row, own])
            for ref in parts_gmem:
                for part in range(count):
                    found += load(ref.at[part, row, own])
            for ref in bias_gmem:
                found += load(ref.at[own])
            return found.astype(x.dtype)

        stream = [total(own) for own in shares]
        scales = [load(scale_gmem.at[own]) for own in shares]  # asked for before it is waited
        for own, y in zip(shares, stream, strict=True):
            for ref in after_gmem:
                ref[row, own] = y
        stream = [y.astype(jnp.float32) for y in stream]
        squares = sum((y * y).sum(axis=1) for y in stream)
        sums[pl.ds(group * unit, unit)] = squares
        plgpu.barrier_arrive(ready)
        plgpu.barrier_wait(ready)
        mean = sum(sums[place] for place in range(groups * unit)) * (1.0 / width)
        for own, y, factor in zip(shares, stream, scales, strict=True):
            inverse = lax.rsqrt(lax.broadcast_in_dim(mean + eps, y.shape, ()))
            z = y * inverse * (1.0 + factor)
            if not operand:
                z_gmem[row, own] = z.astype(x.dtype)
                continue
            z = jnp.clip(z * (1.0 / DIVISOR), -LARGEST, LARGEST).astype(jnp.float16)
            if interpret:
                z_gmem[row, own] = reorder(z)
            else:
                stores.store_pieces(z, z_gmem, row * width + own.start * PIECE)

    def in_pieces(array):
        return array.reshape(*array.shape[:-1], width // PIECE, PIECE)

    like = jax.ShapeDtypeStruct((rows, width // PIECE, PIECE), x.dtype)
    padded = operand_type(rows, width)
    out = jax.ShapeDtypeStruct((padded.shape[0], *like.shape[1:]), padded.dtype)
    results = [out if operand else like, *[like] * bool(added or biases)]
    z, *after = plgpu.kernel(
        body,
        out_type=results,
        grid=(rows,),
        grid_names=("row",),
        num_threads=groups,
        thread_name="group",
        interpret=interpret,
        kernel_name="add_and_norm",
        compiler_params=launch.LANES,
        scratch_types=[
            plgpu.SMEM((groups * unit,), jnp.float32),
            plgpu.Barrier(num_arrivals=groups),
        ],
    )(*map(in_pieces, [x, scale, *added, *biases]))
    [after] = after or [x]
    return after.reshape(x.shape), z.reshape(-1, width)
