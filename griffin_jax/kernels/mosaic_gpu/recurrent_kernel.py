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

CHANNELS = 64  # of a block
ROWS = 64  # of a block
_C = 8.0  # the paper's constant
_WGMMA = plgpu.Layout.WGMMA
_ROW, _COLUMN = _WGMMA.reduce(1), _WGMMA.reduce(0)


@functools.partial(jax.jit, static_argnames="interpret")
def recurrent_step(u, y, conv, hidden, taps, gates, a_param, positions, *, interpret=False):
    """z = gelu(y) * h and the state after, for one token of each row.

    Args:
      u: [B, R] in bfloat16, what is convolved; B is 8, 16, 32 or a multiple of 64.
      y: [B, R], of the other branch.
      conv: [B, C - 1, R], the inputs before, newest last.
      hidden: float32[B, R].
      taps: The convolution's weight [C, R] and bias [R].
      gates: For the input gate and for the recurrence gate a weight [N, R/N (in), R/N (out)] and a
        bias [N, R/N].
      a_param: [R].
      positions: int32[B], each token's position in its document, -1 for padding.
      interpret: Parameters of Pallas' interpreter, or False.

    Returns:
      z [B, R], hidden float32[B, R] and conv [B, C - 1, R].
    """
    batch, width = u.shape
    count = taps[0].shape[0]
    heads, size, _ = gates[0][0].shape
    rows = max(min(batch, ROWS), 8)  # more than there are read as zeros and are not written
    chunks = size // CHANNELS
    positions = jnp.pad(positions, (0, -batch % ROWS), constant_values=-1)
    half = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    single = (plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(128))

    def load(ref, layout=_WGMMA):
        if interpret:
            return ref[...]
        return plgpu.load(ref, layout=layout, optimized=False)  # pyright: ignore[reportCallIssue]

    def body(
        u_gmem, y_gmem, conv_gmem, hidden_gmem, tap_gmem, bias_gmem, wx_gmem, bx_gmem, wa_gmem,
        ba_gmem, rate_gmem, position_gmem, z_gmem, hidden_out, conv_out,
        u_smem, conv_smem, w_smem, y_smem, hidden_smem, tap_smem, bias_smem, own_smem, rate_smem,
        position_smem, first, second,
    ):  # fmt: skip
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
        copy(bias_gmem.at[mine], bias_smem, first)
        copy(position_gmem.at[pl.ds(row, ROWS)], position_smem, first)
        for gate, source in enumerate((wx_gmem, wa_gmem)):  # pyright: ignore[reportAssignmentType]
            for j in range(chunks):
                inputs = pl.ds(head * size + j * CHANNELS, CHANNELS)
                outputs = pl.ds(chunk * CHANNELS, CHANNELS)
                copy(source.at[inputs, outputs], w_smem.at[gate, j], second)
        copy(y_gmem.at[some, own], y_smem.at[pl.ds(0, rows)], second)
        copy(hidden_gmem.at[some, own], hidden_smem.at[pl.ds(0, rows)], second)
        copy(bx_gmem.at[own], own_smem.at[0], second)
        copy(ba_gmem.at[own], own_smem.at[1], second)
        copy(rate_gmem.at[own], rate_smem, second)

        def across(vector):
            return lax.broadcast_in_dim(vector, (ROWS, CHANNELS), (1,))

        plgpu.barrier_wait(first)
        position = lax.broadcast_in_dim(load(position_smem, _ROW), (ROWS, CHANNELS), (0,))
        entered = load(u_smem.at[chunk])
        before = [load(conv_smem.at[tap, chunk]) for tap in range(count - 1)]

        # A loop, whose code is fetched once.
        def convolve(j, carry):
            columns = pl.ds(j * CHANNELS, CHANNELS)
            total = across(load(bias_smem.at[columns], _COLUMN).astype(jnp.float32))
            for distance in range(count):
                tap = count - 1 - distance
                source = conv_smem.at[tap, j] if distance else u_smem.at[j]
                x = load(source).astype(jnp.float32)
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
        decay = across(load(rate_smem, _COLUMN)) * a_gate  # -log a
        a, double = jnp.exp(-decay), 2.0 * decay
        # 1 - a^2, also where a is nearly 1.
        near = double * (1.0 - double * (0.5 - double * (1.0 / 6.0)))
        square = jnp.where(double < 0.01, near, 1.0 - a * a)
        reset = position == 0
        x = load(u_smem.at[chunk]).astype(jnp.float32) * input_gate
        x *= jnp.where(reset, 1.0, jnp.sqrt(square))
        past = load(hidden_smem)
        h = jnp.where(reset, 0.0, a) * past + x
        h = jnp.where(position >= 0, h, past)
        branch = load(y_smem).astype(jnp.float32)
        inner = math.sqrt(2 / math.pi) * (branch + 0.044715 * branch * branch * branch)
        branch = branch / (1.0 + jnp.exp(-2.0 * inner))
        hidden_smem[...] = h
        y_smem[...] = (branch * h.astype(y.dtype).astype(jnp.float32)).astype(y.dtype)
        plgpu.commit_smem()
        give = plgpu.copy_smem_to_gmem
        give(hidden_smem.at[pl.ds(0, rows)], hidden_out.at[some, own])
        give(y_smem.at[pl.ds(0, rows)], z_gmem.at[some, own])
        for tap in range(count - 1):
            columns = pl.ds(tap * width + channel, CHANNELS)
            give(conv_smem.at[tap, chunk, pl.ds(0, rows)], conv_out.at[some, columns])
        plgpu.wait_smem_to_gmem(0)

    rate = _C * jax.nn.softplus(a_param.astype(jnp.float32))
    flat = conv.reshape(batch, -1)
    z, hidden, flat = plgpu.kernel(
        body,
        out_type=[
            jax.ShapeDtypeStruct(y.shape, y.dtype),
            jax.ShapeDtypeStruct(hidden.shape, hidden.dtype),
            jax.ShapeDtypeStruct(flat.shape, flat.dtype),
        ],
        grid=(heads, chunks, -(-batch // ROWS)),
        grid_names=("head", "chunk", "rows"),
        interpret=interpret,
        kernel_name="recurrent_step",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane,
            unsafe_no_auto_barriers=True,
            approx_math=True,
        ),
        scratch_types=[
            plgpu.SMEM((chunks, ROWS, CHANNELS), u.dtype, transforms=half),
            plgpu.SMEM((count - 1, chunks, ROWS, CHANNELS), u.dtype, transforms=half),
            plgpu.SMEM((2, chunks, CHANNELS, CHANNELS), u.dtype, transforms=half),
            plgpu.SMEM((ROWS, CHANNELS), u.dtype, transforms=half),
            plgpu.SMEM((ROWS, CHANNELS), jnp.float32, transforms=single),
            plgpu.SMEM((count, size), u.dtype),
            plgpu.SMEM((size,), u.dtype),
            plgpu.SMEM((2, CHANNELS), u.dtype),
            plgpu.SMEM((CHANNELS,), jnp.float32),
            plgpu.SMEM((ROWS,), jnp.int32),
            plgpu.Barrier(num_arrivals=chunks * count + 3),
            plgpu.Barrier(num_arrivals=2 * chunks + 5),
        ],
    )(
        u, y, flat, hidden, *taps,
        gates[0][0].reshape(width, size), gates[0][1].reshape(-1),
        gates[1][0].reshape(width, size), gates[1][1].reshape(-1),
        rate, positions,
    )  # fmt: skip
    return z, hidden, flat.reshape(conv.shape)
