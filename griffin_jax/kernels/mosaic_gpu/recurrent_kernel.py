"""What stands between a recurrent block's linear layers, for one token of many rows, on Hopper.

A block of threads has some rows and 64 channels of a head. It convolves all of the head's channels,
which both gates read, multiplies them by its part of the gates' weights, and takes the RG-LRU's step.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from griffin_jax.kernels.mosaic_gpu import launch, stores
from griffin_jax.kernels.mosaic_gpu.operand import DIVISOR, LARGEST, operand_type

CHANNELS = 64  # of a block
ROWS = 64  # of a block
_C = 8.0  # the paper's constant
_WGMMA = plgpu.Layout.WGMMA
_ROW, _COLUMN = _WGMMA.reduce(1), _WGMMA.reduce(0)


@functools.partial(jax.jit, static_argnames=("operand", "interpret"))
def recurrent_step(
    u, y, biases, conv, hidden, taps, gates, a_param, positions, *, operand=False, interpret=False
):
    """Computes z = gelu(y) * h and the state after, for one token of each row.

    Args:
      u: [B, R] in bfloat16, what is convolved; B is at most 8, 16, 32 or a multiple of 64.
      y: [B, R], of the other branch.
      biases: What is added to u and to y before, [R] each.
      conv: [B, C - 1, R], the inputs before, newest last.
      hidden: float32[B, R].
      taps: The convolution's weight [C, R] and bias [R].
      gates: For the input gate and for the recurrence gate a weight [N, R/N (in), R/N (out)] and a
        bias [N, R/N].
      a_param: [R].
      positions: int32[B], each token's position in its document, -1 for padding.
      operand: Whether z is what a product with 4-bit weights reads, see `operand.operand`.
      interpret: Parameters of Pallas' interpreter, or False.

    Returns:
      z [B, R], hidden float32[B, R] and conv [B, C - 1, R]. The state is written in place, but for
      conv of more rows than a block has.
    """
    batch, width = u.shape
    count = taps[0].shape[0]
    heads, size, _ = gates[0][0].shape
    rows = max(min(batch, ROWS), 8)  # more than there are read as zeros and are not written
    chunks = size // CHANNELS
    # The blocks of a head read the same of conv. As a cluster they tell one another when they have;
    # of many rows clusters would leave multiprocessors without work.
    cluster = batch <= ROWS
    positions = jnp.pad(positions, (0, -batch % ROWS), constant_values=-1)
    half = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    single = (plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(128))

    def load(ref, layout=_WGMMA):
        return launch.load(ref, layout, interpret)

    def body(
        u_gmem, y_gmem, u_bias_gmem, y_bias_gmem, tap_gmem, bias_gmem, wx_gmem, bx_gmem, wa_gmem,
        ba_gmem, a_gmem, position_gmem, *refs,
    ):  # fmt: skip
        if cluster:
            hidden_gmem, conv_gmem, z_gmem, *scratch = refs
            conv_out = conv_gmem
        else:
            conv_gmem, hidden_gmem, z_gmem, conv_out, *scratch = refs
        (
            u_smem, conv_smem, w_smem, y_smem, hidden_smem, tap_smem, bias_smem, own_smem,
            position_smem, first, second, *read,
        ) = scratch  # fmt: skip
        chunk = lax.axis_index("chunk")
        head = lax.axis_index("head")
        row = lax.axis_index("rows") * ROWS
        channel = head * size + chunk * CHANNELS
        some, own = pl.ds(row, rows), pl.ds(channel, CHANNELS)

        def copy(source, target, barrier):
            plgpu.copy_gmem_to_smem(source, target, barrier)

        for j in range(chunks):
            columns = pl.ds(head * size + j * CHANNELS, CHANNELS)
            copy(u_gmem.at[some, columns], u_smem.at[j, pl.ds(0, rows)], first)
            for tap in range(count - 1):
                columns = pl.ds(tap * width + head * size + j * CHANNELS, CHANNELS)
                target = conv_smem.at[tap, j, pl.ds(0, rows)]
                copy(conv_gmem.at[some, columns], target, first)
        # Numbers of a channel or a row come this way, too: read one after another from memory, they
        # would take longer than all the rest.
        mine = pl.ds(head * size, size)
        copy(tap_gmem.at[:, mine], tap_smem, first)
        copy(bias_gmem.at[mine], bias_smem.at[0], first)
        copy(u_bias_gmem.at[mine], bias_smem.at[1], first)
        copy(position_gmem.at[pl.ds(row, ROWS)], position_smem, first)
        for gate, source in enumerate((wx_gmem, wa_gmem)):  # pyright: ignore[reportAssignmentType]
            for j in range(chunks):
                inputs = pl.ds(head * size + j * CHANNELS, CHANNELS)
                outputs = pl.ds(chunk * CHANNELS, CHANNELS)
                copy(source.at[inputs, outputs], w_smem.at[gate, j], second)
        copy(y_gmem.at[some, own], y_smem.at[pl.ds(0, rows)], second)
        copy(hidden_gmem.at[some, own], hidden_smem.at[pl.ds(0, rows)], second)
        for index, source in enumerate((bx_gmem, ba_gmem, y_bias_gmem, a_gmem)):
            copy(source.at[own], own_smem.at[index], second)

        def across(vector):
            return lax.broadcast_in_dim(vector, (ROWS, CHANNELS), (1,))

        plgpu.barrier_wait(first)
        position = lax.broadcast_in_dim(load(position_smem, _ROW), (ROWS, CHANNELS), (0,))

        def entering(j):
            columns = pl.ds(j * CHANNELS, CHANNELS)
            return load(u_smem.at[j]) + across(load(bias_smem.at[1, columns], _COLUMN))

        entered = entering(chunk)
        before = [load(conv_smem.at[tap, chunk]) for tap in range(count - 1)]

        # A loop, whose code is fetched once.
        def convolve(j, carry):
            columns = pl.ds(j * CHANNELS, CHANNELS)
            total = across(load(bias_smem.at[0, columns], _COLUMN).astype(jnp.float32))
            for distance in range(count):
                tap = count - 1 - distance
                x = load(conv_smem.at[tap, j]) if distance else entering(j)
                x = x.astype(jnp.float32)
                if distance:
                    x = jnp.where(position >= distance, x, 0.0)
                total += x * across(load(tap_smem.at[tap, columns], _COLUMN).astype(jnp.float32))
            u_smem[j] = total.astype(u.dtype)
            return carry

        lax.fori_loop(0, chunks, convolve, None)
        # The convolution's inputs move on by one token.
        for tap, after in enumerate([*before[1:], entered]):
            conv_smem[tap, chunk] = jnp.where(position >= 0, after, before[tap])
        plgpu.commit_smem()
        plgpu.barrier_wait(second)
        if read:
            plgpu.barrier_arrive(read[0].at[0])

        def gate(index):
            def multiply(sums):
                for j in range(chunks):
                    plgpu.wgmma(sums, u_smem.at[j], w_smem.at[index, j])
                plgpu.wgmma_wait(0)
                return sums[...]

            found = pl.run_scoped(multiply, plgpu.ACC((ROWS, CHANNELS)))
            found = found.astype(u.dtype) + across(load(own_smem.at[index], _COLUMN))
            return 1.0 / (1.0 + jnp.exp(-found.astype(jnp.float32)))

        input_gate, a_gate = gate(0), gate(1)
        rate = _C * _softplus(load(own_smem.at[3], _COLUMN).astype(jnp.float32))
        decay = across(rate) * a_gate  # -log a
        a, double = jnp.exp(-decay), 2.0 * decay
        # 1 - a^2, also where a is nearly 1.
        near = double * (1.0 - double * (0.5 - double * (1.0 / 6.0)))
        square = jnp.where(double < 0.01, near, 1.0 - a * a)
        reset = position == 0
        x = load(u_smem.at[chunk]).astype(jnp.float32) * input_gate
        # JAX 0.10 lowers no square root, but its inverse.
        x *= jnp.where(reset, 1.0, square * lax.rsqrt(jnp.maximum(square, 1e-30)))
        past = load(hidden_smem)
        h = jnp.where(reset, 0.0, a) * past + x
        h = jnp.where(position >= 0, h, past)
        branch = load(y_smem) + across(load(own_smem.at[2], _COLUMN))
        branch = branch.astype(jnp.float32)
        inner = math.sqrt(2 / math.pi) * (branch + 0.044715 * branch * branch * branch)
        branch = branch / (1.0 + jnp.exp(-2.0 * inner))
        hidden_smem[...] = h
        z = (branch * h.astype(y.dtype).astype(jnp.float32)).astype(y.dtype)
        if operand:
            z = jnp.clip(z.astype(jnp.float32) / DIVISOR, -LARGEST, LARGEST)
            piece, quarter = lax.div(channel, 256), lax.rem(lax.div(channel, CHANNELS), 4)
            if interpret:
                parts = z[:rows].astype(jnp.float16).reshape(rows, 4, 4, 2, 2)
                z_gmem[some, piece, :, :, :, quarter, :] = parts
            else:
                place = row * width + piece * 256 + quarter * 2
                stores.store_operand(z, z_gmem, place, width, rows)
        else:
            y_smem[...] = z
        plgpu.commit_smem()
        give = plgpu.copy_smem_to_gmem
        give(hidden_smem.at[pl.ds(0, rows)], hidden_gmem.at[some, own])
        if not operand:
            give(y_smem.at[pl.ds(0, rows)], z_gmem.at[some, own])
        if read:
            plgpu.barrier_wait(read[0].at[0])
        for tap in range(count - 1):
            columns = pl.ds(tap * width + channel, CHANNELS)
            give(conv_smem.at[tap, chunk, pl.ds(0, rows)], conv_out.at[some, columns])
        plgpu.wait_smem_to_gmem(0)

    flat = conv.reshape(batch, -1)
    inputs = [
        u, y, *biases, *taps,
        gates[0][0].reshape(width, size), gates[0][1].reshape(-1),
        gates[1][0].reshape(width, size), gates[1][1].reshape(-1),
        a_param, positions,
    ]  # fmt: skip
    results = [operand_type(batch, width) if operand else jax.ShapeDtypeStruct(y.shape, y.dtype)]
    updated = [hidden]
    axes = {"grid": (heads, chunks, -(-batch // ROWS)), "grid_names": ("head", "chunk", "rows")}
    barriers = []
    if cluster:
        updated.append(flat)
        if chunks > 1:
            axes = {
                "grid": (heads, 1),
                "grid_names": ("head", "rows"),
                "cluster": (chunks,),
                "cluster_names": ("chunk",),
            }
            barriers = [plgpu.ClusterBarrier(collective_axes=("chunk",), num_barriers=1)]
    else:
        inputs.append(flat)
        results.append(jax.ShapeDtypeStruct(flat.shape, flat.dtype))
    results, updated = launch.launch_in_place(
        body,
        inputs,
        updated,
        results,
        [
            plgpu.SMEM((chunks, ROWS, CHANNELS), u.dtype, transforms=half),
            plgpu.SMEM((count - 1, chunks, ROWS, CHANNELS), u.dtype, transforms=half),
            plgpu.SMEM((2, chunks, CHANNELS, CHANNELS), u.dtype, transforms=half),
            plgpu.SMEM((ROWS, CHANNELS), u.dtype, transforms=half),
            plgpu.SMEM((ROWS, CHANNELS), jnp.float32, transforms=single),
            plgpu.SMEM((count, size), u.dtype),
            plgpu.SMEM((2, size), u.dtype),
            plgpu.SMEM((4, CHANNELS), u.dtype),
            plgpu.SMEM((ROWS,), jnp.int32),
            plgpu.Barrier(num_arrivals=chunks * count + 4),
            plgpu.Barrier(num_arrivals=2 * chunks + 6),
            *barriers,
        ],
        name="recurrent_step",
        interpret=interpret,
        **axes,
    )
    z, hidden, flat = results[0], updated[0], (updated if cluster else results)[1]
    if operand:
        z = z.reshape(-1, width)
    return z, hidden, flat.reshape(conv.shape)


def _softplus(x):
    """Returns log(1 + e^x), also where it is small."""
    tail = jnp.exp(-jnp.maximum(x, -x))
    near = tail * (1.0 - tail * (0.5 - tail * (1.0 / 3.0 - tail * 0.25)))
    return jnp.maximum(x, 0.0) + jnp.where(tail < 0.02, near, jnp.log(1.0 + tail))
