"""The RG-LRU forward, a block of threads for each chunk of time of 64 channels, on Hopper."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from griffin_jax.kernels.mosaic_gpu import launch, ptx

CHANNELS = 64  # of a block, two for each lane
GROUPS = 8  # of a chunk, one for each warp
STEPS = 16  # of a group
EMPTY = -1
_LN2 = math.log(2)
_REF = plgpu.RefType
_NUMBER = plgpu.Layout.WG_SPLAT


def _gates(number, step, channel, one):
    """Decay and what enters, of one step and channel; words w0 (x), w1 (gate_x), w2 (gate_a)."""
    f = ptx.literal
    widen = "shl.b32 t, {}, 16;" if channel == 0 else "and.b32 t, {}, 0xffff0000;"
    text = ""
    for name_, word in (("x", "w0"), ("i", "w1"), ("r", "w2")):
        text += widen.format(word) + f" mov.b32 {name_}, t;\n"
    text += f"mul.f32 r, r, {f(-1 / _LN2)}; mul.f32 i, i, {f(-1 / _LN2)};\n"
    if one:
        # One reciprocal of both gates' product, which does not overflow.
        text += f"min.NaN.f32 r, r, {f(60.0)}; min.NaN.f32 i, i, {f(60.0)};\n"
        text += "ex2.approx.ftz.f32 r, r; ex2.approx.ftz.f32 i, i;\n"
        text += f"add.f32 r, r, {f(1.0)}; add.f32 i, i, {f(1.0)}; mul.f32 q, r, i;\n"
        text += "rcp.approx.ftz.f32 q, q; mul.f32 v, q, i; mul.f32 i, q, r; mov.f32 r, v;\n"
    else:
        text += "ex2.approx.ftz.f32 r, r; ex2.approx.ftz.f32 i, i;\n"
        text += f"add.f32 r, r, {f(1.0)}; add.f32 i, i, {f(1.0)};\n"
        text += "rcp.approx.ftz.f32 r, r; rcp.approx.ftz.f32 i, i;\n"
    text += f"fma.rn.f32 l, slope{channel}, r, f{step % 4}; min.NaN.f32 l, l, {f(0.0)};\n"
    text += "ex2.approx.ftz.f32 a, l;\n"
    text += f"mul.f32 z, l, l; fma.rn.f32 q, z, {f(-(_LN2**5) / 60)}, {f(-(_LN2**3) / 3)};\n"
    text += f"fma.rn.f32 q, z, q, {f(-2 * _LN2)}; mul.f32 v, a, l; mul.f32 q, q, v;\n"
    text += f"neg.f32 v, a; fma.rn.f32 v, v, a, {f(1.0)}; setp.gt.f32 p, l, {f(-0.375)};\n"
    text += "selp.f32 q, q, v, p; sqrt.approx.ftz.f32 q, q;\n"
    text += "mul.f32 i, i, x; mul.f32 i, i, q;\n"
    if step == 0:
        text += f"mov.f32 d{number}, a; mov.f32 h{number}, i;\n"
    else:
        text += f"mul.f32 d{number}, d{number - 2}, a; fma.rn.f32 h{number}, a, h{number - 2}, i;\n"
    return text


BATCH = 1


def words(begin, count=BATCH):
    text = ""
    for step in range(begin, begin + count):
        for word, base in enumerate(("px", "pi", "pr")):
            text += f"ld.shared.b32 k{(3 * step + word) % 24}, [{base} + {step * 2 * CHANNELS}];\n"
    return text


def _text(variant):
    f = ptx.literal
    one, spread = "one" in variant, "spread" in variant
    shared = "shared" in variant or spread
    text = (
        "{\n.reg .b32 thread, lane, warp, place, own, t, u, w0, w1, w2, e0, e1, at;\n"
        ".reg .b64 wide;\n.reg .pred p, q0; .reg .b32 k<24>;\n"
        ".reg .f32 x, i, r, l, a, z, q, v, slope0, slope1, f0, f1, f2, f3;\n"
        f".reg .f32 d<{2 * STEPS}>, h<{2 * STEPS}>, da0, ha0, da1, ha1, dp0, hp0, dp1, hp1, s0, s1;\n"
        "mov.u32 thread, %tid.x; and.b32 lane, thread, 31; shr.u32 warp, thread, 5;\n"
        f"mad.lo.u32 place, warp, {STEPS * 2 * CHANNELS}, 0; mad.lo.u32 place, lane, 4, place;\n"
        "mad.lo.u32 own, lane, 8, $5; ld.shared.v2.f32 {slope0, slope1}, [own];\n"
        f"mad.lo.u32 own, warp, {4 * STEPS}, $3; add.u32 w0, place, $0; mov.u32 t, 0;\n"
    )
    text += ".reg .b32 px, pi, pr; add.u32 px, place, $0; add.u32 pi, place, $1; add.u32 pr, place, $2;\n"
    text += ".reg .b32 pd; add.u32 pd, place, $8;\n"
    for step in range(STEPS):
        if shared and step % BATCH == 0:
            text += words(step) if step == 0 else ""
            text += words(step + BATCH) if step + BATCH < STEPS else ""
        if step % 4 == 0:
            text += f"ld.shared.v4.f32 {{f0, f1, f2, f3}}, [own + {4 * step}];\n"
        offset = step * 2 * CHANNELS
        if not shared:
            text += words(step, 1)
        for word in range(3):
            text += f"mov.b32 w{word}, k{(3 * step + word) % 24};\n"
        for channel in range(2):
            text += _gates(2 * step + channel, step, channel, one)
        if spread:
            text += f"st.shared.f32 [px + {offset}], d{2 * step}; st.shared.f32 [pd + {offset}], d{2 * step + 1};\n"
        if shared:
            text += f"st.shared.f32 [pi + {offset}], h{2 * step}; st.shared.f32 [pr + {offset}], h{2 * step + 1};\n"
    n = 2 * STEPS
    text += (
        "mad.lo.u32 own, lane, 16, $4; mad.lo.u32 t, warp, 512, own;\n"
        f"st.shared.v4.f32 [t], {{d{n - 2}, h{n - 2}, d{n - 1}, h{n - 1}}};\n"
        "bar.sync 0, 256;\n"
        f"mov.f32 dp0, {f(1.0)}; mov.f32 hp0, {f(0.0)}; mov.f32 dp1, dp0; mov.f32 hp1, hp0;\n"
    )
    # The groups before: their decays and sums; the first warp goes on to the end of all.
    text += "mov.f32 da0, dp0; mov.f32 ha0, hp0; mov.f32 da1, dp0; mov.f32 ha1, hp0;\n"
    text += "setp.eq.u32 q0, warp, 0; @q0 mov.b32 u, 8; @!q0 mov.b32 u, warp;\n"
    for group in range(GROUPS):
        text += (
            f"setp.lt.u32 p, {group}, u;\n"
            f"@p ld.shared.v4.f32 {{x, i, r, l}}, [own + {512 * group}];\n"
            "@p fma.rn.f32 ha0, x, ha0, i; @p fma.rn.f32 ha1, r, ha1, l;\n"
            "@p mul.f32 da0, da0, x; @p mul.f32 da1, da1, r;\n"
        )
    text += (
        "@!q0 bra OTHERS;\n"
        "mad.wide.u32 wide, lane, 8, $6;\n"
        "AGAIN:\n"
        "ld.relaxed.gpu.global.v2.b32 {e0, e1}, [wide];\n"
        f"setp.eq.u32 p, e0, {EMPTY}; @!p setp.eq.u32 p, e1, {EMPTY};\n"
        "@p bra AGAIN;\n"
        "mov.b32 s0, e0; mov.b32 s1, e1;\n"
        "fma.rn.f32 da0, da0, s0, ha0; fma.rn.f32 da1, da1, s1, ha1;\n"
        # No NaN is the empty word.
        f"mov.b32 e0, da0; mov.b32 e1, da1;\n"
        "setp.nan.f32 p, da0, da0; @p mov.b32 e0, 0x7fc00000;\n"
        "setp.nan.f32 p, da1, da1; @p mov.b32 e1, 0x7fc00000;\n"
        "mad.wide.u32 wide, lane, 8, $7; st.relaxed.gpu.global.v2.b32 [wide], {e0, e1};\n"
        "mad.lo.u32 t, lane, 8, $4; st.shared.v2.f32 [t + 4096], {s0, s1};\n"
        f"mov.f32 da0, {f(1.0)}; mov.f32 da1, da0; mov.f32 ha0, {f(0.0)}; mov.f32 ha1, ha0;\n"
        "OTHERS:\n"
        "bar.sync 0, 256;\n"
        "mad.lo.u32 t, lane, 8, $4; ld.shared.v2.f32 {s0, s1}, [t + 4096];\n"
        "fma.rn.f32 s0, da0, s0, ha0; fma.rn.f32 s1, da1, s1, ha1;\n"
    )
    for step in range(STEPS):
        if shared:
            offset = step * 2 * CHANNELS
            if spread:
                text += f"ld.shared.f32 d{2 * step}, [px + {offset}]; ld.shared.f32 d{2 * step + 1}, [pd + {offset}];\n"
            text += f"ld.shared.f32 h{2 * step}, [pi + {offset}]; ld.shared.f32 h{2 * step + 1}, [pr + {offset}];\n"
        text += (
            f"fma.rn.f32 x, d{2 * step}, s0, h{2 * step}; fma.rn.f32 i, d{2 * step + 1}, s1, h{2 * step + 1};\n"
            f"cvt.rn.bf16x2.f32 w0, i, x; st.shared.b32 [px + {step * 2 * CHANNELS}], w0;\n"
        )
    return text + "}"


def _run(variant, ctx, x, gate_x, gate_a, shift, ends, slope, states, extra, before, after):
    del ctx
    arguments = [ptx.address(ref) for ref in (x, gate_x, gate_a, shift, ends, slope)]
    arguments += [ptx.element_address(states, ptx.number(place)) for place in (before, after)]
    arguments.append(ptx.address(extra))
    ptx.asm(_text(variant), "r,r,r,r,r,r,l,l,r", arguments, 0)


def forward(x, gate_x, gate_a, slope, hidden, shift, *, variant="two", pad=0):
    """Computes h and the last state; see `rg_lru_pallas_gpu`. T is a multiple of 128, R of 64."""
    batch, time, width = x.shape
    chunk_steps = GROUPS * STEPS
    count, tiles = time // chunk_steps, width // CHANNELS
    share = batch // len(slope)
    empty = jnp.full((batch, count, width), EMPTY, jnp.int32)
    bits = lax.bitcast_convert_type(hidden, jnp.int32)
    bits = jnp.where(hidden == hidden, bits, 0x7FC00000)
    states = jnp.concatenate([bits[:, None], empty], axis=1)

    def body(
        x_gmem, gate_x_gmem, gate_a_gmem, slope_gmem, shift_gmem, states_gmem, h_gmem,
        x_smem, gate_x_smem, gate_a_smem, slope_smem, shift_smem, ends, full, extra, *_
    ):  # fmt: skip
        program, group = lax.axis_index("program"), lax.axis_index("group")
        tile = lax.rem(program, tiles)
        turn = lax.div(program, tiles)
        row, chunk = lax.rem(turn, batch), lax.div(turn, batch)
        channels = pl.ds(tile * CHANNELS, CHANNELS)
        begin = row * time + chunk * chunk_steps

        @pl.when(group == 0)
        def _():
            own = pl.ds(begin, chunk_steps)
            plgpu.copy_gmem_to_smem(gate_a_gmem.at[own, channels], gate_a_smem, full)
            plgpu.copy_gmem_to_smem(gate_x_gmem.at[own, channels], gate_x_smem, full)
            plgpu.copy_gmem_to_smem(x_gmem.at[own, channels], x_smem, full)
            plgpu.copy_gmem_to_smem(slope_gmem.at[lax.div(row, share), channels], slope_smem, full)
            plgpu.copy_gmem_to_smem(shift_gmem.at[own], shift_smem, full)

        plgpu.barrier_wait(full)
        before = (row * (count + 1) + chunk) * width + tile * CHANNELS
        call = plgpu.inline_mgpu(arg_types=(*[_REF()] * 8, _NUMBER, _NUMBER))
        call(functools.partial(_run, variant))(
            x_smem, gate_x_smem, gate_a_smem, shift_smem, ends, slope_smem, states_gmem, extra,
            before, before + width,
        )  # fmt: skip
        plgpu.commit_smem()
        half = chunk_steps // 2
        own = pl.ds(group * half, half)
        plgpu.copy_smem_to_gmem(x_smem.at[own], h_gmem.at[pl.ds(begin + group * half, half), channels])
        plgpu.wait_smem_to_gmem(0)

    tile_type = plgpu.SMEM((chunk_steps, CHANNELS), x.dtype)
    scratch = [
        tile_type, tile_type, tile_type,
        plgpu.SMEM((CHANNELS,), jnp.float32),
        plgpu.SMEM((chunk_steps,), jnp.float32),
        plgpu.SMEM((GROUPS * 128 + CHANNELS,), jnp.float32),
        plgpu.Barrier(num_arrivals=5),
    ]  # fmt: skip
    spread = "spread" in variant
    scratch.append(plgpu.SMEM((chunk_steps if spread else 8, CHANNELS), x.dtype))
    if pad:
        scratch.append(plgpu.SMEM((pad,), jnp.int8))
    flat = [v.reshape(batch * time, width) for v in (x, gate_x, gate_a)]
    [h], [states] = launch.launch_in_place(
        body,
        [*flat, slope, shift.reshape(-1)],
        [states],
        [jax.ShapeDtypeStruct((batch * time, width), x.dtype)],
        scratch,
        name="rg_lru",
        grid=(count * batch * tiles,),
        grid_names=("program",),
        num_threads=2,
        thread_name="group",
    )
    return h.reshape(x.shape), lax.bitcast_convert_type(states[:, -1], jnp.float32)
