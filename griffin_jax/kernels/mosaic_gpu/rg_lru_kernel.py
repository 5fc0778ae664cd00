"""The RG-LRU in one pass forward and one backward, on Hopper: a block of threads for a chunk of time.

A block copies 128 steps of 64 channels to shared memory, rows of 128 bytes, and what it makes of
them back. `rg_lru_ptx` is what its threads do between.

The state passes from chunk to chunk through one word of memory per channel, which holds either the
state or `EMPTY`: no flag, no fence. The wait ends because blocks start in the order of their numbers,
as all single-pass scans on GPUs assume, and a chunk's number is above that of the one before it.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from griffin_jax.kernels.mosaic_gpu import launch, ptx, rg_lru_ptx
from griffin_jax.kernels.mosaic_gpu.rg_lru_ptx import CHANNELS
from griffin_jax.kernels.time_chunks_gpu import EMPTY, bits_of

STEPS = 128  # of a chunk
_GROUPS = 8  # of a chunk, one for each warp
_WARPS = 4  # of a warpgroup
_ALIGNED = 4  # positions
_REF = plgpu.RefType
_NUMBER = plgpu.Layout.WG_SPLAT


@jax.jit
def forward(x, gate_x, gate_a, slope, hidden, positions, lengths):
    """Computes h_t = a_t h_{t-1} + sqrt(1 - a_t^2) sigmoid(gate_x) x, log2(a) = slope sigmoid(gate_a).

    Args:
      x: [B, T, R] in bfloat16; R is a multiple of 64.
      gate_x: [B, T, R] in bfloat16.
      gate_a: [B, T, R] in bfloat16.
      slope: float32[S, R], where S divides B: a row for each B / S rows.
      hidden: float32[B, R], the state before.
      positions: int32[B, T]; a = 0 where it is 0.
      lengths: int32[B]; a = 1 and x = 0 from there on.

    Returns:
      h [B, T, R] and the state after, float32[B, R].
    """
    h, last = _launch(
        "rg_lru", rg_lru_ptx.forward, (x, gate_x, gate_a), 1,
        slope, positions, lengths, hidden,
    )  # fmt: skip
    return h, last


@jax.jit
def backward(x, gate_x, gate_a, slope, hidden, positions, lengths, h, dh, dlast):
    """Computes the gradients of the first five arguments of `forward` from those of its results."""
    batch, width = hidden.shape
    sums = jax.ShapeDtypeStruct((batch, -(-x.shape[1] // STEPS), width), jnp.float32)
    *gradients, dhidden, dslope = _launch(
        "rg_lru_backward", rg_lru_ptx.backward, (x, gate_x, gate_a, dh, h), 3,
        slope, positions, lengths, dlast, hidden=hidden, sums=sums,
    )  # fmt: skip
    return *gradients, dslope.reshape(len(slope), -1, width).sum(axis=1), dhidden


def _launch(
    name, code, inputs, results, slope, positions, lengths, initial, *, hidden=None, sums=None
):  # fmt: skip
    """Runs `code` of `rg_lru_ptx` for all chunks; where there are `sums`, that is the backward pass.

    Args:
      name: The kernel's.
      code: Called with the groups of a chunk and the steps of each.
      inputs: [B, T, R] each. Backward, the last is read of the steps before.
      results: How many of the first inputs' places hold results afterward.
      slope: As for `forward`.
      positions: As for `forward`.
      lengths: As for `forward`.
      initial: float32[B, R], what enters the chunk that comes first.
      hidden: float32[B, R], the last input before all time.
      sums: The type of sums over each chunk.

    Returns:
      The results; float32[B, R], what leaves the chunk that comes last; and the sums.
    """
    batch, time, width = inputs[0].shape
    count, tiles = -(-time // STEPS), width // CHANNELS
    share = batch // len(slope)
    warpgroups = _GROUPS // _WARPS
    part = STEPS // warpgroups
    boxes = len(inputs) + 1
    is_backward = sums is not None
    extra = [hidden] if is_backward else []
    # Rows of what the copy engine reads begin at multiples of 16 bytes.
    positions = jnp.pad(positions, ((0, 0), (0, -time % _ALIGNED)))
    empty = jnp.full((batch, count - 1, width), EMPTY, jnp.int32)
    states = jnp.concatenate([bits_of(initial)[:, None], empty], axis=1)

    def body(*refs):
        sources, refs = refs[: len(inputs)], refs[len(inputs) :]
        (slope_gmem, position_gmem, length_gmem), refs = refs[:3], refs[3:]
        hidden_gmem, refs = refs[: len(extra)], refs[len(extra) :]
        (states_gmem, *targets), refs = refs[: 1 + results], refs[1 + results :]
        (last_gmem, *sums_gmem), refs = refs[: 1 + len(extra)], refs[1 + len(extra) :]
        own, (slope_smem, position_smem, ends, full) = refs[:boxes], refs[boxes:]

        program, group = lax.axis_index("program"), lax.axis_index("group")
        tile, turn = lax.rem(program, tiles), lax.div(program, tiles)
        row, turn = lax.rem(turn, batch), lax.div(turn, batch)
        chunk = count - 1 - turn if is_backward else turn
        channel, begin = tile * CHANNELS, chunk * STEPS
        channels = pl.ds(channel, CHANNELS)

        # Steps behind the last one are read as zeros and are not written.
        @pl.when(group == 0)
        def _copy():
            for index, source in enumerate(sources):
                before = 1 if is_backward and index == len(sources) - 1 else 0
                place = pl.ds(begin - before, STEPS)
                plgpu.copy_gmem_to_smem(source.at[row, place, channels], own[index], full)
            of_row = slope_gmem.at[lax.div(row, share), channels]
            plgpu.copy_gmem_to_smem(of_row, slope_smem, full)
            steps = position_gmem.at[row, pl.ds(begin, STEPS)]
            plgpu.copy_gmem_to_smem(steps, position_smem, full)

        length = length_gmem[row]
        plgpu.barrier_wait(full)
        enters, of_row = (row * count + turn) * width + channel, row * width + channel
        numbers = [begin, length, jnp.where(turn == count - 1, 1, 0)]
        places = [(states_gmem, enters), (states_gmem, enters + width), (last_gmem, of_row)]
        if is_backward:
            total = (row * count + chunk) * width + channel
            places += [(hidden_gmem[0], of_row), (sums_gmem[0], total)]
        near, far = [*own, position_smem, ends, slope_smem], [ref for ref, _ in places]
        numbers += [place for _, place in places]
        kinds = *[_REF()] * (len(near) + len(far)), *[_NUMBER] * len(numbers)
        run = functools.partial(_run, code(_GROUPS, STEPS // _GROUPS), len(near), len(far))
        plgpu.inline_mgpu(arg_types=kinds)(run)(*near, *far, *numbers)
        plgpu.commit_smem()
        # A warpgroup writes what its own warps have, which backward are the last steps first.
        first = (warpgroups - 1 - group if is_backward else group) * part
        for box, target in zip(own, targets, strict=False):
            place = target.at[row, pl.ds(begin + first, part), channels]
            plgpu.copy_smem_to_gmem(box.at[pl.ds(first, part)], place)
        plgpu.wait_smem_to_gmem(0)

    like = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in inputs[:results]]
    scratch = [
        *[plgpu.SMEM((STEPS, CHANNELS), jnp.bfloat16)] * boxes,
        plgpu.SMEM((CHANNELS,), jnp.float32),
        plgpu.SMEM((STEPS,), jnp.int32),
        plgpu.SMEM((rg_lru_ptx.ends_size(_GROUPS),), jnp.float32),
        plgpu.Barrier(num_arrivals=len(inputs) + 2),
    ]
    last = jax.ShapeDtypeStruct(initial.shape, jnp.float32)
    out_type = [*like, last, *([sums] if is_backward else [])]

    def scoped(*refs):
        pl.run_scoped(functools.partial(body, *refs), *scratch, collective_axes="group")

    mesh = plgpu.Mesh(
        kernel_name=name,
        grid=(math.prod((count, batch, tiles)),),
        grid_names=("program",),
        num_threads=warpgroups,
        thread_name="group",
    )
    kernel: Any = pl.kernel(
        scoped, out_type=out_type, mesh=mesh, compiler_params=launch.LANES, name=name
    )

    # The states are changed where they lie. A reference of `jax.new_ref` would be one for all of a
    # program, and what is mapped or worked out again cannot have such.
    def run(refs):
        states, targets = refs
        found = kernel(*inputs, slope, positions, lengths, *extra, states)
        for target, array in zip(targets, found, strict=True):
            target[...] = array

    unset = [jnp.zeros(v.shape, v.dtype) for v in out_type]  # which nothing reads
    return pl.run_state(run)((states, unset))[1]


def _run(text, near, far, ctx, *operands):
    """The code with its arguments: addresses in shared memory, numbers, and addresses in memory."""
    del ctx
    shared, memory, numbers = (
        operands[:near],
        operands[near : near + far],
        [ptx.number(number) for number in operands[near + far :]],
    )
    arguments = [ptx.address(ref) for ref in shared] + numbers[:-far]
    kinds = ["r"] * len(arguments) + ["l"] * far
    arguments += map(ptx.element_address, memory, numbers[-far:])
    ptx.asm(text, ",".join(kinds), arguments, 0)
