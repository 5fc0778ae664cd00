"""Attention of one new token of many rows to their rings of keys and values, on Hopper.

The heads of a row share its keys, so that the scores of a few keys are a matrix product, and so is
what the heads mix of the values. A block of threads reads a part of one row's ring: a warpgroup
copies keys and values to shared memory, several pieces ahead, another multiplies them. Whoever adds
the parts up needs no more than their sums.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from griffin_jax.kernels.mosaic_gpu import launch, stores

KEYS = 64  # of a piece
HEADS = 64  # rows of the tensor cores, of which a row's heads are some
MASKED = -1e30
_SHARED_BYTES = 232448  # of a block
_MAX_STAGES = 8
_BLOCKS = 132  # that run at once
_MOST_PARTS = 16
_WGMMA = plgpu.Layout.WGMMA
_ROW, _COLUMN = _WGMMA.reduce(1), _WGMMA.reduce(0)


def parts_of(batch: int, slots: int) -> int:
    """Returns in how many parts a ring is read, each by a block of its own."""
    pieces = slots // KEYS
    each = -(-pieces // min(pieces, _MOST_PARTS, max(1, _BLOCKS // batch)))
    return -(-pieces // each)


def powers(size: int) -> float:
    """Returns what makes a product of heads of this size a score in powers of two."""
    return math.log2(math.e) / math.sqrt(size)


@functools.partial(jax.jit, static_argnames=("parts", "interpret"))
def attend_to_rings(
    tokens, keys, values, start, limit, slot, *, parts, interpret=False
) -> tuple[jax.Array, ...]:
    """Computes what the heads mix of the ring's values and the new one, and the ring after.

    Args:
      tokens: [B, N + 8, H] in bfloat16 or float16: N queries, the key, the value, and 6 that do not
        count. N is a multiple of 8, at most 64; H is 128 or 256.
      keys: [B, S, H], a ring whose S is a multiple of 64.
      values: [B, S, H].
      start: int32[B], the position that follows the newest one in the ring.
      limit: int32[B], how far back a token sees.
      slot: int32[B], where the new token goes, -1 for nowhere. It goes there after the ring was read.
      parts: The number of parts of a ring, see `parts_of`.
      interpret: Parameters of Pallas' interpreter, or False.

    Returns:
      For each part float32[B, parts, N, H], values times 2^(score - largest); float32[B, parts, 2, 64], of
      which N count, the largest score of the part in powers of two, and the sum of 2^(score - largest);
      keys; values.
      The new token is of the first part. A part without any key that is seen has a largest score of
      about `MASKED`.
    """
    batch, heads, size = tokens.shape
    heads -= 8
    dtype = tokens.dtype
    slots = keys.shape[1]
    room = _SHARED_BYTES - 4096 - (HEADS + 16) * size * dtype.itemsize
    stages = min(_MAX_STAGES, slots // KEYS, room // (2 * KEYS * size * dtype.itemsize))
    tiled = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    to_powers = powers(size)

    # The interpreter runs no tensor cores that go on from sums, and that of old versions of JAX does
    # not transpose.
    def scores_of(q, keys, count):
        if interpret:
            return jnp.dot(q[...], keys[...].T, preferred_element_type=jnp.float32)

        def multiply(scores):
            plgpu.wgmma(scores, q, keys.transpose((1, 0)))
            return scores[...]

        return pl.run_scoped(multiply, plgpu.ACC((HEADS, count)))

    def mix(out, shares, values):
        if interpret:
            return out + jnp.dot(shares, values[...], preferred_element_type=jnp.float32)
        multiply = pl.run_state(lambda sums: plgpu.wgmma(sums, shares, values))
        return multiply(plgpu.ACC.init(out))

    def body(
        tokens_gmem, start_gmem, limit_gmem, slot_gmem, keys_gmem, values_gmem,
        out_gmem, sums_gmem,
        q_smem, key_smem, value_smem, keys_smem, values_smem, sums_smem,
        own_full, keys_full, values_full, empty,
    ):  # fmt: skip
        row, part = lax.axis_index("row"), lax.axis_index("part")
        begin = start_gmem[row]
        pieces = lax.div(jnp.minimum(begin, slots) + KEYS - 1, KEYS)
        each = jnp.maximum(lax.div(pieces + parts - 1, parts), 1)
        first = jnp.minimum(part * each, pieces)
        steps = jnp.minimum(first + each, pieces) - first

        @pl.when(lax.axis_index("group") == 0)
        def _copy():
            for source, target in (
                (pl.ds(0, heads), q_smem.at[pl.ds(0, heads)]),
                (pl.ds(heads, 8), key_smem),
                (heads + 1, value_smem),
            ):
                plgpu.copy_gmem_to_smem(tokens_gmem.at[row, source], target, own_full)

            def fetch(i):
                place, stage = pl.ds((first + i) * KEYS, KEYS), lax.rem(i, stages)
                for ring, target, full in (
                    (keys_gmem, keys_smem, keys_full),
                    (values_gmem, values_smem, values_full),
                ):
                    plgpu.copy_gmem_to_smem(ring.at[row, place], target.at[stage], full.at[stage])

            def step(i, _):
                plgpu.barrier_wait(empty.at[lax.rem(i, stages)])
                fetch(i)

            lax.fori_loop(0, jnp.minimum(steps, stages), lambda i, _: fetch(i), None)
            lax.fori_loop(stages, steps, step, None)

            def finish(i, _):  # every completion is waited for
                plgpu.barrier_wait(empty.at[lax.rem(i, stages)])

            lax.fori_loop(jnp.maximum(steps - stages, 0), steps, finish, None)

            # All of the part has been read, so the oldest key in it may go.
            place = slot_gmem[row]
            owner = jnp.minimum(lax.div(lax.div(place, KEYS), each), parts - 1)

            @pl.when((place >= 0) & (owner == part))
            def _write():
                keys_gmem[row, place] = tokens_gmem[row, heads]
                values_gmem[row, place] = tokens_gmem[row, heads + 1]

        @pl.when(lax.axis_index("group") == 1)
        def _attend():
            seen = limit_gmem[row]
            newest = lax.rem(begin + slots - 1, slots)

            def columns_of(shape):
                if interpret:
                    return lax.broadcasted_iota(jnp.int32, shape, 1)
                return plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=_WGMMA)

            def begin_with_own():
                """Returns what the first part begins with, the new token, and others with nothing."""
                plgpu.barrier_wait(own_full)
                mine = (part == 0).astype(jnp.float32)
                score = scores_of(q_smem, key_smem, 8) * to_powers
                score = jnp.where(columns_of(score.shape) == 0, score, MASKED).max(axis=1)
                value = launch.load(value_smem, _COLUMN, interpret).astype(jnp.float32) * mine
                out = lax.broadcast_in_dim(value, (HEADS, size), (1,))
                total = lax.broadcast_in_dim(mine, (HEADS,), ())
                if not interpret:
                    total = plgpu.layout_cast(total, _ROW)
                return out, score * mine + MASKED * (1 - mine), total

            def step(i, carry):
                out, largest, total = carry
                stage = lax.rem(i, stages)
                plgpu.barrier_wait(keys_full.at[stage])

                scores = scores_of(q_smem, keys_smem.at[stage], KEYS) * to_powers
                place = columns_of(scores.shape)
                place += (first + i) * KEYS
                age = newest + 1 - place
                age = jnp.where(age > 0, age, age + slots)
                scores = jnp.where((age <= begin) & (age <= seen), scores, MASKED)
                before, largest = largest, jnp.maximum(largest, scores.max(axis=1))
                shares = jnp.exp2(scores - lax.broadcast_in_dim(largest, scores.shape, (0,)))
                kept = jnp.exp2(before - largest)
                total = total * kept + shares.sum(axis=1)
                out *= lax.broadcast_in_dim(kept, out.shape, (0,))
                shares = shares.astype(dtype)
                plgpu.barrier_wait(values_full.at[stage])

                out = mix(out, shares, values_smem.at[stage])
                plgpu.barrier_arrive(empty.at[stage])
                return out, largest, total

            out, largest, total = lax.fori_loop(0, steps, step, begin_with_own())
            sums_smem[0], sums_smem[1] = largest, total
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(sums_smem, sums_gmem.at[row, part])
            if interpret:
                out_gmem[row, part] = out[:heads]
            else:
                stores.store_rows(out, out_gmem, (row * parts + part) * heads * size, heads)
            plgpu.wait_smem_to_gmem(0)

    (out, sums), (keys, values) = launch.launch_in_place(
        body,
        [tokens, start, limit, slot],
        [keys, values],
        [
            jax.ShapeDtypeStruct((batch, parts, heads, size), jnp.float32),
            jax.ShapeDtypeStruct((batch, parts, 2, HEADS), jnp.float32),
        ],
        [
            plgpu.SMEM((HEADS, size), dtype, transforms=tiled),
            plgpu.SMEM((8, size), dtype, transforms=tiled),
            plgpu.SMEM((size,), dtype),
            plgpu.SMEM((stages, KEYS, size), dtype, transforms=tiled),
            plgpu.SMEM((stages, KEYS, size), dtype, transforms=tiled),
            plgpu.SMEM((2, HEADS), jnp.float32),
            plgpu.Barrier(num_arrivals=3),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_barriers=stages),
        ],
        grid=(batch, parts),
        grid_names=("row", "part"),
        num_threads=2,
        thread_name="group",
        name="attention_rows",
        interpret=interpret,
    )
    return out, sums, keys, values
