"""16-bit weights times few rows of x on a Hopper GPU: y^T = W x^T by its asynchronous tensor cores.

A warpgroup copies pieces of weights and x to shared memory, several ahead. Others, one for each 64
rows of the weight, multiply them.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from griffin_jax.kernels.mosaic_gpu import inline, launch, pieces, stores
from griffin_jax.kernels.mosaic_gpu.dense_plan import SWAPPED, DensePlan
from griffin_jax.kernels.mosaic_gpu.sharing_out import TILE

_HALF = TILE // 2


@functools.partial(jax.jit, static_argnames=("plan", "dtype", "interpret"))
def multiply(
    x: jax.Array,
    weights: Sequence[jax.Array],
    biases: Sequence[jax.Array] = (),
    *,
    plan: DensePlan,
    dtype: DTypeLike = jnp.float32,
    interpret=False,
) -> list[jax.Array]:
    """Computes the products of x with several weights, or what becomes of two of which one gates the other.

    Args:
      x: [n, in] in bfloat16 or float16; n is at most 8, or a multiple of 8 up to `plan.columns`.
      weights: [out, in] each, in the type of x.
      biases: [out] each where `plan.gated`, in the type of x; they may be left out.
      plan: The plan of these shapes.
      dtype: The dtype of the result where `plan.split` is 1.
      interpret: Parameters of Pallas' interpreter, or False. It reads nothing beyond the end of x,
        where a GPU finds zeros.

    Returns:
      [n, out] for each weight, or float32[split, n, out], whose sum is meant. Where `plan.gated`,
      gelu(gate) * up of the first and the second, [n, out].
    """
    total, width = x.shape
    n, tiles, span, stages = plan.columns, plan.tiles, plan.span, plan.stages
    share = TILE * tiles // (1 + plan.gated)
    counts = [weight.shape[0] // share for weight in (weights[:1] if plan.gated else weights)]
    begins = np.cumsum([0, *counts])
    steps = width // plan.split // span
    tiled = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))

    def body(*refs):
        x_gmem, refs = refs[0], refs[1:]
        w_gmem, refs = refs[: len(weights)], refs[len(weights) :]
        bias_gmem, refs = refs[: len(biases)], refs[len(biases) :]
        y_gmem, refs = refs[: len(counts)], refs[len(counts) :]
        w_smem, x_smem, swapped, full, empty = refs
        group = lax.axis_index("group")
        block = lax.axis_index("rows")
        part = lax.axis_index("split")

        of_weight = functools.partial(pieces.of_weight, block, begins, share)

        def parts_of(index, row):
            """Returns (weight, first row, rows, tile, place in it) of what a block has."""
            if not plan.gated:
                return [(index, row + tile * TILE, TILE, tile, 0) for tile in range(tiles)]
            return [
                (other, row + tile * _HALF, _HALF, tile, other * _HALF)
                for tile in range(tiles)
                for other in range(2)
            ]

        @pl.when(group == tiles)
        def _copy():
            def produce(index, row):
                def fetch(i, slot):
                    inputs = pl.ds((part * steps + i) * span, span)
                    barrier = full.at[slot]
                    for source, begin, rows, tile, place in parts_of(index, row):
                        plgpu.copy_gmem_to_smem(
                            w_gmem[source].at[pl.ds(begin, rows), inputs],
                            w_smem.at[slot, tile, pl.ds(place, rows)],
                            barrier,
                        )
                    rows = pl.ds(lax.axis_index("columns") * n, n)
                    plgpu.copy_gmem_to_smem(x_gmem.at[rows, inputs], x_smem.at[slot], barrier)

                pieces.copy_ahead(fetch, steps, stages, empty)

            of_weight(produce)
            pieces.drain(steps, stages, empty)

        def gate(acc, tile):
            """Returns gelu(gate) * up in the first half of a tile, whose halves are the two."""
            if interpret:
                up = jnp.concatenate([acc[_HALF:], acc[:_HALF]])
            else:
                up = stores.take_second_half(acc, swapped, tile)
            inner = np.sqrt(2 / np.pi) * (acc + 0.044715 * acc * acc * acc)
            return acc / (1.0 + jnp.exp(-2.0 * inner)) * up

        @pl.when(group < tiles)
        def _multiply():
            tile = group

            def free(i):
                plgpu.barrier_arrive(empty.at[lax.rem(i, stages)])

            def arrays(i):
                slot = lax.rem(i, stages)
                plgpu.barrier_wait(full.at[slot])
                return w_smem.at[slot, tile], x_smem.at[slot]

            # The interpreter runs no tensor cores that go on from sums.
            def plainly(i, acc):
                w, columns = (ref[...].astype(jnp.float32) for ref in arrays(i))
                plgpu.commit_smem()  # the tensor cores' reads need no fence before the next copy
                free(i)
                return acc + jnp.dot(w, columns.T, precision="highest")

            def add_up(sums):
                def step(i, _):
                    w, columns = arrays(i)
                    plgpu.wgmma(sums, w, columns.transpose((1, 0)))
                    plgpu.wgmma_wait(1)
                    pl.when(i > 0)(functools.partial(free, i - 1))

                lax.fori_loop(0, steps, step, None)
                plgpu.wgmma_wait(0)
                free(steps - 1)
                return sums[...]

            first = block * share + tile * _HALF
            bias = None
            if biases and interpret:
                bias = jnp.concatenate([ref[pl.ds(first, _HALF)] for ref in bias_gmem])[:, None]
            elif biases:
                bias = inline.read_biases(bias_gmem, first)
            if interpret:
                acc = lax.fori_loop(0, steps, plainly, jnp.zeros((TILE, n), jnp.float32))
            else:
                acc = pl.run_scoped(add_up, plgpu.ACC((TILE, n)))
            if biases:
                acc = acc + bias.astype(acc.dtype) if interpret else inline.add_biases(acc, bias)
            rows = TILE
            if plan.gated:
                acc, rows = gate(acc, tile), _HALF

            def store(index, row):
                row += tile * rows
                out = weights[index].shape[0]
                if interpret:
                    y = acc[:rows, :total].T.astype(y_gmem[index].dtype)
                    y_gmem[index][part, :, pl.ds(row, rows)] = y
                else:
                    place = part * total * out + row
                    stores.store(acc, y_gmem[index], place, out, rows=rows, columns=total)

            of_weight(store)

    kind = jnp.float32 if plan.split > 1 else dtype
    shapes = [(plan.split, total, weight.shape[0]) for weight in weights[: len(counts)]]
    products = plgpu.kernel(
        body,
        out_type=[jax.ShapeDtypeStruct(shape, kind) for shape in shapes],
        grid=(plan.split, int(begins[-1]), 1),
        grid_names=("split", "rows", "columns"),
        num_threads=tiles + 1,
        thread_name="group",
        interpret=interpret,
        kernel_name=f"dense_matmul_{n}",
        compiler_params=launch.LANES,
        scratch_types=[
            plgpu.SMEM((stages, tiles, TILE, span), x.dtype, transforms=tiled),
            plgpu.SMEM((stages, n, span), x.dtype, transforms=tiled),
            plgpu.SMEM((tiles if plan.gated else 1, _HALF * SWAPPED), jnp.float32),
            plgpu.Barrier(num_arrivals=(1 + plan.gated) * tiles + 1, num_barriers=stages),
            plgpu.Barrier(num_arrivals=tiles, num_barriers=stages),
        ],
    )(jnp.pad(x, ((0, n - total), (0, 0))) if interpret else x, *weights, *biases)
    return [y if plan.split > 1 else y[0] for y in products]
