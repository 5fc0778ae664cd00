"""4-bit weights times rows of x on a Hopper GPU: y^T = W x^T by its asynchronous tensor cores.

A warpgroup copies pieces of weights, scales and x to shared memory, several ahead. Others look the
bytes of a piece up, two codes a byte, multiply them by their scales and hand them to the tensor
cores from registers, which add up in float32. The weights lie in memory as in their file: a thread
reads 64 weights of a row, which share a scale or two, and x comes in an order that fits.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from griffin_jax.kernels.mosaic_gpu import inline
from griffin_jax.kernels.mosaic_gpu.plan import PIECE, TILE, Plan
from griffin_jax.quantization import codes

_STEP = 16  # inputs of one instruction of the tensor cores
_WORDS = 8192  # of the table of pairs, with a copy for each bank


def reorder(x: jax.Array) -> jax.Array:
    """x [n, in] in the order in which threads read weights.

    A step of the tensor cores multiplies 16 inputs, of which a thread has numbers 2t, 2t + 1, 2t + 8
    and 2t + 9 of a row, t its place among four. It takes them from 64 that lie side by side.
    """
    n, width = x.shape
    x = x.reshape(n, width // PIECE, 4, PIECE // 64, 4, 2, 2)
    return x.transpose(0, 1, 3, 4, 5, 2, 6).reshape(n, width)


def pairs(quant_type: str) -> np.ndarray:
    """int32[256]: the float16 codes of a byte, those of its high half first."""
    bits = codes.CODE_BOOKS[quant_type].astype(np.float16).view(np.uint16).astype(np.uint32)
    byte = np.arange(256)
    return (bits[byte >> 4] | bits[byte & 15] << 16).view(np.int32)


@functools.partial(jax.jit, static_argnames=("plan", "quant_type", "dtype", "interpret"))
def multiply(
    x: jax.Array,
    packed: Sequence[jax.Array],
    scales: Sequence[jax.Array],
    *,
    plan: Plan,
    quant_type: str,
    dtype,
    interpret=False,
) -> list[jax.Array]:
    """The products of x with several weights.

    Args:
      x: A sixteenth of x, float16[n, in] in the order of `reorder`; n is a multiple of
        `plan.columns`. The kernel takes sixteen times the scales.
      packed: uint8[out, in / 2] each, two codes a byte.
      scales: float32[out, in / block size] each.
      plan: The plan of these shapes.
      quant_type: "nf4" or "fp4".
      dtype: The dtype of the result where `plan.split` is 1.
      interpret: Parameters of Pallas' interpreter, or False.

    Returns:
      [n, out] for each weight, or float32[split, n, out], whose sum is meant.
    """
    total, width = x.shape
    n, tiles, parts, stages = plan.columns, plan.tiles, plan.parts, plan.stages
    rows = TILE * tiles
    counts = [weight.shape[0] // rows for weight in packed]
    begins = np.cumsum([0, *counts])
    span = PIECE * parts
    steps = width // plan.split // span
    consumers = plan.consumers
    swizzle = plgpu.SwizzleTransform(128)
    x_layout = (plgpu.TilingTransform((8, 64)), swizzle)
    w_layout = (plgpu.TilingTransform((8, 128)), swizzle)

    def body(*refs):
        x_gmem, codes_gmem = refs[:2]
        w_gmem, refs = refs[2 : 2 + len(packed)], refs[2 + len(packed) :]
        s_gmem, y_gmem = refs[: len(packed)], refs[len(packed) : 2 * len(packed)]
        w_smem, s_smem, x_smem, table, sums, full, empty, ready = refs[2 * len(packed) :]
        group = lax.axis_index("group")
        block = lax.axis_index("rows")
        column = lax.axis_index("columns") * n
        part = lax.axis_index("split")

        def of_weight(run):
            for index, begin in enumerate(begins[:-1]):
                here = (block >= begin) & (block < begins[index + 1])
                pl.when(here)(functools.partial(run, index, (block - int(begin)) * rows))

        def add_parts(acc, tile, own_part):
            @pl.when(own_part > 0)
            def _give():
                if interpret:
                    sums[own_part - 1, tile] = acc
                else:
                    inline.give(acc, sums, (own_part - 1) * tiles + tile)

            plgpu.barrier_arrive(ready)
            plgpu.barrier_wait(ready)
            for other in range(parts - 1):
                if interpret:
                    acc = acc + sums[other, tile]
                else:
                    acc = inline.take(acc, sums, other * tiles + tile)
            return acc

        @pl.when(group == consumers)
        def _copy():
            def produce(index, row):
                def ask(i, slot):
                    place = part * steps + i
                    own = pl.ds(row, rows)
                    barrier = full.at[slot]
                    for source, target in (
                        (
                            w_gmem[index].at[own, pl.ds(place * (span // 2), span // 2)],
                            w_smem,
                        ),
                        (
                            s_gmem[index].at[
                                own, pl.ds(place * (parts * plan.scales), parts * plan.scales)
                            ],
                            s_smem,
                        ),
                        (x_gmem.at[pl.ds(column, n), pl.ds(place * span, span)], x_smem),
                    ):
                        plgpu.copy_gmem_to_smem(source, target.at[slot], barrier)

                for i in range(min(stages, steps)):
                    ask(i, i)

                def step(i, _):
                    slot = lax.rem(i, stages)
                    plgpu.barrier_wait(empty.at[slot])
                    ask(i, slot)

                lax.fori_loop(stages, steps, step, None)

            of_weight(produce)
            for i in range(max(0, steps - stages), steps):  # every completion is waited for
                plgpu.barrier_wait(empty.at[i % stages])

        @pl.when(group < consumers)
        def _multiply():
            tile, own_part = lax.rem(group, tiles), lax.div(group, tiles)
            if not interpret:
                inline.fill_table(codes_gmem, table, consumers)
            plgpu.barrier_arrive(ready)
            plgpu.barrier_wait(ready)

            def step(i, acc):
                slot = lax.rem(i, stages)
                plgpu.barrier_wait(full.at[slot])
                arrays = w_smem.at[slot], s_smem.at[slot], x_smem.at[slot]
                if interpret:
                    acc = _plainly(plan, codes_gmem, acc, *arrays, tile, own_part)
                else:
                    acc = inline.consume(
                        plan, x_layout, w_layout, acc, *arrays, table, tile, own_part
                    )
                plgpu.commit_smem()  # what was read here may be overwritten by copies
                plgpu.barrier_arrive(empty.at[slot])
                return acc

            acc = jnp.zeros((TILE, n), jnp.float32)
            if not interpret:
                acc = plgpu.layout_cast(acc, plgpu.Layout.WGMMA)
            acc = lax.fori_loop(0, steps, step, acc)
            if parts > 1:
                acc = add_parts(acc, tile, own_part)

            @pl.when(own_part == 0)
            def _store():
                def store(index, row):
                    row += tile * TILE
                    out = packed[index].shape[0]
                    if interpret:
                        y = acc.T.astype(y_gmem[index].dtype)
                        y_gmem[index][part, pl.ds(column, n), pl.ds(row, TILE)] = y
                    else:
                        place = (part * total + column) * out + row
                        inline.store(acc, y_gmem[index], place, out, n)

                of_weight(store)

    result = jnp.float32 if plan.split > 1 else dtype
    products = plgpu.kernel(
        body,
        out_type=[
            jax.ShapeDtypeStruct((plan.split, total, weight.shape[0]), result) for weight in packed
        ],
        grid=(plan.split, int(begins[-1]), total // n),
        grid_names=("split", "rows", "columns"),
        num_threads=consumers + 1,
        thread_name="group",
        interpret=interpret,
        kernel_name=f"packed_matmul_{n}",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=True
        ),
        scratch_types=[
            plgpu.SMEM((stages, rows, span // 2), jnp.uint8, transforms=w_layout),
            plgpu.SMEM((stages, rows, parts * plan.scales), jnp.float32),
            plgpu.SMEM((stages, n, span), jnp.float16, transforms=x_layout),
            plgpu.SMEM((_WORDS,), jnp.int32),
            plgpu.SMEM((parts - 1, tiles, TILE, n) if parts > 1 else (1, 1, 1, 32), jnp.float32),
            plgpu.Barrier(num_arrivals=3, num_barriers=stages),
            plgpu.Barrier(num_arrivals=consumers, num_barriers=stages),
            plgpu.Barrier(num_arrivals=consumers),
        ],
    )(x, jnp.asarray(pairs(quant_type)), *packed, *scales)
    return [y if plan.split > 1 else y[0] for y in products]


def _plainly(plan, codes_ref, acc, w, s, x, tile, part):
    """What `inline.consume` does, for the interpreter, which runs no PTX."""
    rows = pl.ds(tile * TILE, TILE)
    packed = w[rows, pl.ds(part * (PIECE // 2), PIECE // 2)]
    found = lax.bitcast_convert_type(codes_ref[...][packed.astype(jnp.int32)], jnp.float16)
    scale = 16 * s[rows, pl.ds(part * plan.scales, plan.scales)]
    scale = jnp.minimum(scale, 65504).astype(jnp.float16)
    weights = found.reshape(TILE, plan.scales, -1) * scale[:, :, None]
    weights = reorder(weights.reshape(TILE, PIECE)).astype(jnp.float32)
    columns = x[:, pl.ds(part * PIECE, PIECE)].astype(jnp.float32)
    return acc + jnp.dot(weights, columns.T, precision="highest")
