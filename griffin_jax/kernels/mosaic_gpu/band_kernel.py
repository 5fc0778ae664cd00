"""Attention of many queries to the keys of a ring and of a call, as far back as they see, on Hopper.

The heads of a token share its keys, so a block of threads has the heads of a few tokens in a row:
rows of queries that reach about as far back as one does. A warpgroup copies keys and values to shared
memory, newest first, others multiply them, 64 rows each. While the tensor cores mix the values of a
piece, its warpgroup works out the shares of the next one.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from griffin_jax.kernels.mosaic_gpu import launch

KEYS = 64  # of a piece
ROWS = 64  # of a warpgroup
GROUPS = 2  # that multiply
_SHARED_BYTES = 232448  # of a block
_MAX_STAGES = 4
_BLOCKS = 132  # that run at once
# A power of two, so that a score of nothing but masked keys less the largest one is exactly nothing.
_MASKED = -(2.0**100)
_WGMMA = plgpu.Layout.WGMMA
_ROW = _WGMMA.reduce(1)


def groups_of(rows: int) -> int:
    """Returns how many warpgroups of a block multiply, for so many rows of queries in all."""
    return GROUPS if rows > GROUPS * ROWS * _BLOCKS // 2 else 1


@functools.partial(jax.jit, static_argnames=("heads", "groups", "interpret"))
def attend_to_band(
    q, k, v, cached_k, cached_v, start, low, *, heads, groups=GROUPS, interpret=False
) -> jax.Array:
    """Computes softmax attention to what a row of queries sees.

    Positions count from the call's first token, so those of the ring are below 0.

    Args:
      q: [B, T * N, H] in bfloat16 or float16, the N heads of a token side by side, not scaled. T * N
        is a multiple of 64 * `groups`, H is 64, 128 or 256.
      k: [B, T, H], with T a multiple of 64.
      v: [B, T, H].
      cached_k: [B, S, H], a ring whose S is a multiple of 64.
      cached_v: [B, S, H].
      start: int32[B], the number of the call's first token; the ring's newest is in the slot before.
      low: int32[B, T * N], the position of the oldest key that a row sees, its own token's at most, -S
        at least. The newest one is its own token's.
      heads: N.
      groups: The number of warpgroups that multiply, each 64 rows.
      interpret: Parameters of Pallas' interpreter, or False.

    Returns:
      [B, T * N, H] in the dtype of q.
    """
    batch, total, size = q.shape
    slots = cached_k.shape[1]
    dtype = q.dtype
    tile = ROWS * groups
    tiles = total // tile
    room = _SHARED_BYTES - 2048 - tile * size * dtype.itemsize
    stages = min(_MAX_STAGES, room // (2 * KEYS * size * dtype.itemsize))
    to_powers = math.log2(math.e) / math.sqrt(size)
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    of_rows = low.reshape(batch, total // ROWS, ROWS)
    bounds = jnp.stack([of_rows.min(axis=2), of_rows.max(axis=2)], axis=2)

    def body(
        q_gmem, k_gmem, v_gmem, ring_k_gmem, ring_v_gmem, start_gmem, low_gmem, bounds_gmem, out_gmem,
        q_smem, k_smem, v_smem, q_full, k_full, v_full, k_empty, v_empty,
    ):  # fmt: skip
        row, group = lax.axis_index("row"), lax.axis_index("group")
        block = tiles - 1 - lax.axis_index("tile")  # the last ones have most to do

        def pieces():
            """Returns what is read, newest first: how many pieces, how many of them of the call, the
            last of those, and the ring's newest slot.
            """
            newest = lax.rem(start_gmem[row] + slots - 1, slots)
            begins = [bounds_gmem[row, block * groups + i, 0] for i in range(groups)]
            oldest = functools.reduce(jnp.minimum, begins)
            last = lax.div(lax.div((block + 1) * tile - 1, heads), KEYS)
            own = last + 1 - lax.div(jnp.maximum(oldest, 0), KEYS)
            # The ring's newest piece holds the newest keys, and behind them its oldest.
            more = jnp.maximum(-oldest - lax.rem(newest, KEYS) - 1, 0)
            ring = jnp.minimum(1 + lax.div(more + KEYS - 1, KEYS), slots // KEYS)
            return own + jnp.where(oldest < 0, ring, 0), own, last, newest

        def ring_piece(i, own, newest):
            piece = lax.div(newest, KEYS) - (i - own)
            return jnp.where(piece < 0, piece + slots // KEYS, piece)

        @pl.when(group == groups)
        def _copy():
            if groups > 1:
                plgpu.set_max_registers(24, action="decrease")
            steps, own, last, newest = pieces()

            def fetch(call, cached, target, full, i):
                stage = lax.rem(i, stages)

                @pl.when(i < own)
                def _():
                    place = pl.ds((last - i) * KEYS, KEYS)
                    plgpu.copy_gmem_to_smem(call.at[row, place], target.at[stage], full.at[stage])

                @pl.when(i >= own)
                def _():
                    place = pl.ds(ring_piece(i, own, newest) * KEYS, KEYS)
                    plgpu.copy_gmem_to_smem(cached.at[row, place], target.at[stage], full.at[stage])

            def step(i, _):
                stage = lax.rem(i, stages)

                def wait(empty):
                    @pl.when(i >= stages)
                    def _():
                        plgpu.barrier_wait(empty.at[stage])

                wait(k_empty)
                fetch(k_gmem, ring_k_gmem, k_smem, k_full, i)
                wait(v_empty)
                fetch(v_gmem, ring_v_gmem, v_smem, v_full, i)

            lax.fori_loop(0, steps, step, None)

            def finish(i, _):  # every completion is waited for
                plgpu.barrier_wait(k_empty.at[lax.rem(i, stages)])
                plgpu.barrier_wait(v_empty.at[lax.rem(i, stages)])

            lax.fori_loop(jnp.maximum(steps - stages, 0), steps, finish, None)

        @pl.when(group < groups)
        def _attend():
            if groups > 1:
                plgpu.set_max_registers(240, action="increase")
            steps, own, last, newest = pieces()
            first = (block * groups + group) * ROWS
            queries = q_smem.at[group]
            plgpu.copy_gmem_to_smem(q_gmem.at[row, pl.ds(first, ROWS)], queries, q_full.at[group])
            lowest = launch.load(low_gmem.at[row, pl.ds(first, ROWS)], _ROW, interpret)
            own_low = bounds_gmem[row, block * groups + group, 1]  # from where on all rows see
            own_high = lax.div(first, heads)  # and until where

            def iota(shape, axis):
                if interpret:
                    return lax.broadcasted_iota(jnp.int32, shape, axis)
                return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=_WGMMA)

            def masked(i, scores):
                """Returns scores of the i-th piece without those of keys that a row does not see."""
                mine = last * KEYS - i * KEYS
                cached = ring_piece(i, own, newest) * KEYS - newest - 1
                cached = jnp.where(cached >= 0, cached - slots, cached)
                place = jnp.where(i < own, mine, cached)
                wrapped = jnp.where(i == own, lax.rem(newest, KEYS) + 1, KEYS)

                def hide(scores):
                    column = iota(scores.shape, 1)
                    position = place + column
                    position = jnp.where(column < wrapped, position, position - slots)
                    highest = lax.div(first + iota(scores.shape, 0), heads)
                    low = lax.broadcast_in_dim(lowest, scores.shape, (0,))
                    seen = (position >= low) & (position <= highest)
                    return jnp.where(seen, scores, _MASKED)

                whole = (place >= own_low) & (place + KEYS - 1 <= own_high) & (wrapped == KEYS)
                return lax.cond(whole, lambda scores: scores, hide, scores)

            def weigh(i, scores, largest, total):
                """Returns by what earlier shares shrink, the shares of a piece, the row's largest score
                and the sum of its shares.
                """
                scores = masked(i, scores)
                before, largest = largest, jnp.maximum(largest, scores.max(axis=1) * to_powers)
                shares = jnp.exp2(
                    scores * to_powers - lax.broadcast_in_dim(largest, scores.shape, (0,))
                )
                kept = jnp.exp2(before - largest)
                total = total * kept + shares.sum(axis=1)
                return kept, shares.astype(dtype), largest, total

            def free(empty, stage):
                if interpret:  # the tensor cores' reads need no fence before the next copy
                    plgpu.commit_smem()
                plgpu.barrier_arrive(empty.at[stage])

            def scores_of(key):
                return jnp.dot(queries[...], k_smem[key].T, preferred_element_type=jnp.float32)

            def mixed(out, shares, value):
                return out + jnp.dot(shares, v_smem[value], preferred_element_type=jnp.float32)

            def first_scores():
                if interpret:
                    return scores_of(0)

                def multiply(scores):
                    plgpu.wgmma(scores, queries, k_smem.at[0].transpose((1, 0)))
                    return scores[...]

                return pl.run_scoped(multiply, plgpu.ACC((ROWS, KEYS)))

            def last_values(out, shares, value):
                if interpret:
                    return mixed(out, shares, value)
                mix = pl.run_state(lambda sums: plgpu.wgmma(sums, shares, v_smem.at[value]))
                return mix(plgpu.ACC.init(out))

            def plainly(i, key, value, out, shares, largest, total):
                """Computes `overlapping` in the interpreter, which runs no tensor cores that go on from
                sums.
                """
                scores = scores_of(key)
                free(k_empty, key)
                kept, *rest = weigh(i + 1, scores, largest, total)
                plgpu.barrier_wait(v_full.at[value])
                return mixed(out, shares, value), kept, *rest

            def overlapping(i, key, value, out, shares, largest, total):
                """Mixes a piece's values, and meanwhile works out the shares of the piece behind it."""

                def both(scores):
                    def mix(refs):
                        sums, *others = refs
                        plgpu.wgmma(scores, queries, k_smem.at[key].transpose((1, 0)))
                        plgpu.barrier_wait(v_full.at[value])
                        plgpu.wgmma(sums, shares, v_smem.at[value])
                        found = plgpu.wgmma_accumulator_load(scores, wait_n=1)
                        free(k_empty, key)
                        results = weigh(i + 1, found, largest, total)
                        for ref, result in zip(others, results, strict=True):
                            ref[...] = result

                    initial = plgpu.ACC.init(out), largest, shares, largest, total
                    return pl.run_state(mix)(initial)

                return pl.run_scoped(both, plgpu.ACC((ROWS, KEYS)))

            def step(i, carry):
                key, value = lax.rem(i + 1, stages), lax.rem(i, stages)
                plgpu.barrier_wait(k_full.at[key])
                run = plainly if interpret else overlapping
                out, kept, *rest = run(i, key, value, *carry)
                free(v_empty, value)
                out *= lax.broadcast_in_dim(kept, out.shape, (0,))
                return out, *rest

            def filled(shape, number, layout):
                array = jnp.full(shape, number, jnp.float32)
                return array if interpret else plgpu.layout_cast(array, layout)

            plgpu.barrier_wait(q_full.at[group])
            plgpu.barrier_wait(k_full.at[0])
            scores = first_scores()
            free(k_empty, 0)
            measures = filled((ROWS,), _MASKED * to_powers, _ROW), filled((ROWS,), 0, _ROW)
            _, *rest = weigh(0, scores, *measures)
            carry = filled((ROWS, size), 0, _WGMMA), *rest
            out, shares, _, total = lax.fori_loop(0, steps - 1, step, carry)
            value = lax.rem(steps - 1, stages)
            plgpu.barrier_wait(v_full.at[value])
            out: Any = last_values(out, shares, value)  # an array, whatever a reference's type says
            free(v_empty, value)
            out *= lax.broadcast_in_dim(1 / total, out.shape, (0,))
            queries[...] = out.astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(queries, out_gmem.at[row, pl.ds(first, ROWS)])
            plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(q.shape, dtype),
        grid=(tiles, batch),
        grid_names=("tile", "row"),
        num_threads=groups + 1,
        thread_name="group",
        interpret=interpret,
        kernel_name=f"attention_band_{size}",
        compiler_params=launch.LANES,
        scratch_types=[
            plgpu.SMEM((groups, ROWS, size), dtype, transforms=transforms),
            plgpu.SMEM((stages, KEYS, size), dtype, transforms=transforms),
            plgpu.SMEM((stages, KEYS, size), dtype, transforms=transforms),
            plgpu.Barrier(num_barriers=groups),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_arrivals=groups, num_barriers=stages),
            plgpu.Barrier(num_arrivals=groups, num_barriers=stages),
        ],
    )(q, k, v, cached_k, cached_v, start, low, bounds)
