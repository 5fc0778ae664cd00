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

from griffin_jax.kernels.mosaic_gpu import inline, pieces, stores
from griffin_jax.kernels.mosaic_gpu.operand import DIVISOR, LARGEST, operand_type, reorder
from griffin_jax.kernels.mosaic_gpu.plan import PIECE, TILE, Plan
from griffin_jax.quantization import codes

_WORDS = 8192  # of the table of pairs, with a copy for each bank


def pairs(quant_type: str) -> np.ndarray:
    """Returns int32[256]: the float16 codes of a byte, those of its high half first."""
    bits = codes.CODE_BOOKS[quant_type].astype(np.float16).view(np.uint16).astype(np.uint32)
    byte = np.arange(256)
    return (bits[byte >> 4] | bits[byte & 15] << 16).view(np.int32)


@functools.partial(jax.jit, static_argnames=("plan", "quant_type", "dtype", "fetched", "interpret"))
def multiply(
    x: jax.Array,
    packed: Sequence[jax.Array],
    scales: Sequence[jax.Array],
    biases: Sequence[jax.Array] = (),
    following: jax.Array | None = None,
    *,
    plan: Plan,
    quant_type: str,
    dtype=jnp.float32,
    fetched: tuple[int, int] = (1, 16),
    interpret=False,
) -> list[jax.Array]:
    """Computes the products of x with several weights, or what becomes of two of which one gates the other.

    Args:
      x: An operand float16[n, in], see `operand.operand`; n is a multiple of `plan.columns`. The
        kernel takes sixteen times the scales.
      packed: uint8[out, in / 2] each, two codes a byte.
      scales: float32[out, in / block size] each.
      biases: [out] each where `plan.gated`; they may be left out.
      following: An array [rows, columns] of a later kernel, of which the second-level cache is to
        fetch some when what this one reads is on its way.
      plan: The plan of these shapes.
      quant_type: "nf4" or "fp4".
      dtype: The dtype of the result where `plan.split` is 1 and nothing is gated.
      fetched: How many parts of each row of `following` have their first bytes fetched, and how many.
      interpret: Parameters of Pallas' interpreter, or False.

    Returns:
      [n, out] for each weight, or float32[split, n, out], whose sum is meant. Where `plan.gated`,
      gelu(gate) * up of the first and the second, as one operand float16[n, out].
    """
    total, width = x.shape
    n, tiles, parts, stages = plan.columns, plan.tiles, plan.parts, plan.stages
    rows = TILE * tiles
    if plan.gated:
        share, copies, shape = rows // 2, 4 * tiles + 1, (rows // 8, 8)
        counts = [packed[0].shape[0] // share]
    else:
        share, copies, shape = rows, 3, (rows,)
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
        s_gmem, refs = refs[: len(packed)], refs[len(packed) :]
        bias_gmem, refs = refs[: len(biases)], refs[len(biases) :]
        later_gmem, refs = refs[: len(later)], refs[len(later) :]
        y_gmem, refs = refs[: len(counts)], refs[len(counts) :]
        w_smem, s_smem, x_smem, table, sums, full, empty, ready = refs
        group = lax.axis_index("group")
        block = lax.axis_index("rows")
        column = lax.axis_index("columns") * n
        part = lax.axis_index("split")

        of_weight = functools.partial(pieces.of_weight, block, begins, share)

        def rows_of(index, row):
            """Returns weights, their rows, and where in shared memory these go."""
            if not plan.gated:
                return [(index, [pl.ds(row, rows)], [])]
            places = [(tile, *_gated_place(row, tile)) for tile in range(tiles)]
            return [
                (
                    other,
                    [pl.ds(4 * piece, 4), pl.ds(begin, 8)],
                    [pl.ds(4 * (other * tiles + tile), 4)],
                )
                for tile, piece, begin in places
                for other in range(2)
            ]

        def add_parts(acc, tile, own_part):
            @pl.when(own_part > 0)
            def _give():
                if interpret:
                    sums[own_part - 1, tile] = acc
                else:
                    stores.give(acc, sums, (own_part - 1) * tiles + tile)

            plgpu.barrier_arrive(ready)
            plgpu.barrier_wait(ready)
            for other in range(parts - 1):
                if interpret:
                    acc = acc + sums[other, tile]
                else:
                    acc = stores.take(acc, sums, other * tiles + tile)
            return acc

        @pl.when(group == consumers)
        def _copy():
            def produce(index, row):
                def fetch(i, slot):
                    place = part * steps + i
                    barrier = full.at[slot]
                    inputs = pl.ds(place * (span // 2), span // 2)
                    blocks = pl.ds(place * (parts * plan.scales), parts * plan.scales)
                    for arrays, target, columns in (
                        (w_gmem, w_smem, inputs),
                        (s_gmem, s_smem, blocks),
                    ):
                        for source, own, there in rows_of(index, row):
                            plgpu.copy_gmem_to_smem(
                                arrays[source].at[*own, columns], target.at[slot, *there], barrier
                            )
                    inputs = pl.ds(place * span, span)
                    plgpu.copy_gmem_to_smem(
                        x_gmem.at[pl.ds(column, n), inputs], x_smem.at[slot], barrier
                    )

                pieces.copy_ahead(fetch, steps, stages, empty)

            of_weight(produce)
            for array in () if interpret else later_gmem:
                own = (lax.axis_index("columns") * int(begins[-1]) + block) * plan.split + part
                blocks = plan.split * int(begins[-1]) * (total // n)
                inline.prefetch(array, own, blocks, *fetched)
            pieces.drain(steps, stages, empty)

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

            def store(index, row):
                row += tile * TILE
                out = packed[index].shape[0]
                if interpret:
                    y = acc.T.astype(y_gmem[index].dtype)
                    y_gmem[index][part, pl.ds(column, n), pl.ds(row, TILE)] = y
                else:
                    place = (part * total + column) * out + row
                    stores.store(acc, y_gmem[index], place, out)

            def store_gated(index, row):
                del index
                out = packed[0].shape[0]
                piece, begin = _gated_place(row, tile)
                if interpret:
                    y = _gate(acc, [bias[pl.ds(piece * PIECE, PIECE)] for bias in bias_gmem], begin)
                    y = y.T.reshape(n, 4, 2, 2, 2).transpose(0, 2, 3, 1, 4).astype(jnp.float16)
                    own = lax.div(begin, 16), pl.ds(lax.rem(lax.div(begin, 4), 4), 2)
                    y_gmem[0][pl.ds(column, n), piece, *own] = y
                else:
                    place = column * out + piece * PIECE + begin * 4
                    first = piece * PIECE + begin
                    stores.store_gated(acc, y_gmem[0], place, out, bias_gmem, first)

            @pl.when(own_part == 0)
            def _store():
                of_weight(store_gated if plan.gated else store)

    if plan.gated:
        results = [operand_type(total, packed[0].shape[0])]
    else:
        kind = jnp.float32 if plan.split > 1 else dtype
        shapes = [(plan.split, total, weight.shape[0]) for weight in packed]
        results = [jax.ShapeDtypeStruct(shape, kind) for shape in shapes]
    weights = *packed, *scales
    if plan.gated:
        weights = [array.reshape(-1, 64, array.shape[1]) for array in weights]
    later = [] if following is None else [following]
    products = plgpu.kernel(
        body,
        out_type=results,
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
            plgpu.SMEM((stages, *shape, span // 2), jnp.uint8, transforms=w_layout),
            plgpu.SMEM((stages, *shape, parts * plan.scales), jnp.float32),
            plgpu.SMEM((stages, n, span), jnp.float16, transforms=x_layout),
            plgpu.SMEM((_WORDS,), jnp.int32),
            plgpu.SMEM((parts - 1, tiles, TILE, n) if parts > 1 else (1, 1, 1, 32), jnp.float32),
            plgpu.Barrier(num_arrivals=copies, num_barriers=stages),
            plgpu.Barrier(num_arrivals=consumers, num_barriers=stages),
            plgpu.Barrier(num_arrivals=consumers),
        ],
    )(x, jnp.asarray(pairs(quant_type)), *weights, *biases, *later)
    if plan.gated:
        return [products[0].reshape(total, -1)]
    return [y if plan.split > 1 else y[0] for y in products]


def _gated_place(row, tile):
    """Returns where a tile of a gated block has its 32 outputs: a piece of 256, and which 8 of
    every 64.

    Their results are next to one another in an operand.
    """
    number = lax.div(row, TILE // 2) + tile
    return lax.div(number, 8), lax.rem(number, 8) * 8


def _plainly(plan, codes_ref, acc, w, s, x, tile, part):
    """Does what `inline.consume` does, for the interpreter, which runs no PTX."""
    bytes_, blocks = (pl.ds(part * count, count) for count in (PIECE // 2, plan.scales))
    if plan.gated:
        rows = [pl.ds(4 * (other * plan.tiles + tile), 4) for other in range(2)]
        w, s = (
            jnp.concatenate([ref[own, :, columns].reshape(TILE // 2, -1) for own in rows])
            for ref, columns in ((w, bytes_), (s, blocks))
        )
    else:
        rows = pl.ds(tile * TILE, TILE)
        w, s = w[rows, bytes_], s[rows, blocks]
    found = lax.bitcast_convert_type(codes_ref[...][w.astype(jnp.int32)], jnp.float16)
    scale = jnp.minimum(16 * s, LARGEST).astype(jnp.float16)
    weights = found.reshape(TILE, plan.scales, -1) * scale[:, :, None]
    weights = reorder(weights.reshape(TILE, PIECE)).astype(jnp.float32)
    columns = x[:, pl.ds(part * PIECE, PIECE)].astype(jnp.float32)
    return acc + jnp.dot(weights, columns.T, precision="highest")


def _gate(acc, biases, begin):
    """Returns what `stores.store_gated` writes, float32[32, n]; `biases` are those of a piece of
    outputs.
    """
    gate, up = jnp.split(acc, 2)
    if biases:
        own = (lax.dynamic_slice(bias.reshape(4, 64), (0, begin), (4, 8)) for bias in biases)
        own = (bias.reshape(-1, 1).astype(jnp.float32) for bias in own)
        gate, up = (y + bias for y, bias in zip((gate, up), own, strict=True))
    return jnp.clip(jax.nn.gelu(gate) * up / DIVISOR, -LARGEST, LARGEST)
