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


def padded(shift, steps):
    """Returns shift [B, T] with padding behind, to whole chunks."""
    return jnp.pad(shift, ((0, 0), (0, -shift.shape[1] % steps)), constant_values=1e30)


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
    count, tiles = -(-time // chunk_steps), width // CHANNELS
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
        begin = chunk * chunk_steps

        @pl.when(group == 0)
        def _():
            own = pl.ds(begin, chunk_steps)
            plgpu.copy_gmem_to_smem(gate_a_gmem.at[row, own, channels], gate_a_smem, full)
            plgpu.copy_gmem_to_smem(gate_x_gmem.at[row, own, channels], gate_x_smem, full)
            plgpu.copy_gmem_to_smem(x_gmem.at[row, own, channels], x_smem, full)
            plgpu.copy_gmem_to_smem(slope_gmem.at[lax.div(row, share), channels], slope_smem, full)
            plgpu.copy_gmem_to_smem(shift_gmem.at[row, own], shift_smem, full)

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
        plgpu.copy_smem_to_gmem(x_smem.at[own], h_gmem.at[row, pl.ds(begin + group * half, half), channels])
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
    [h], [states] = launch.launch_in_place(
        body,
        [x, gate_x, gate_a, slope, padded(shift, chunk_steps)],
        [states],
        [jax.ShapeDtypeStruct(x.shape, x.dtype)],
        scratch,
        name="rg_lru",
        grid=(count * batch * tiles,),
        grid_names=("program",),
        num_threads=2,
        thread_name="group",
    )
    return h, lax.bitcast_convert_type(states[:, -1], jnp.float32)


_MIN_SQUARE = 0.25e-6


def _backward_text(groups, steps):
    f = ptx.literal
    threads = 32 * groups
    row = 2 * CHANNELS
    text = (
        "{\n.reg .b32 thread, lane, warp, rev, place, own, ends, t, u, w, k0, k1, k2, k3, e0, e1;\n"
        ".reg .b32 px, pi, pa, pd, ph, pe, o0, o1;\n"
        ".reg .b64 wide;\n.reg .pred p, q0, first;\n"
        ".reg .f32 x, i, r, l, a, z, q, v, m, g, b, hb0, hb1, n, slope0, slope1, sh;\n"
        ".reg .f32 r0, r1, da0, ha0, da1, ha1, s0, s1, sum0, sum1;\n"
        "mov.u32 thread, %tid.x; and.b32 lane, thread, 31; shr.u32 warp, thread, 5;\n"
        f"sub.u32 rev, {groups - 1}, warp;\n"
        f"mad.lo.u32 place, rev, {steps * row}, 0; mad.lo.u32 place, lane, 4, place;\n"
        "add.u32 px, place, $0; add.u32 pi, place, $1; add.u32 pa, place, $2; add.u32 pd, place, $3;\n"
        "add.u32 ph, place, $4; add.u32 pe, place, $5;\n"
        "mad.lo.u32 own, lane, 8, $8; ld.shared.v2.f32 {slope0, slope1}, [own];\n"
        f"mad.lo.u32 own, rev, {4 * steps}, $6; mad.lo.u32 ends, lane, 16, $7;\n"
        f"mov.f32 da0, {f(1.0)}; mov.f32 da1, da0; mov.f32 ha0, {f(0.0)}; mov.f32 ha1, ha0;\n"
    )

    def widen(name, word, channel):
        how = "shl.b32 t, {}, 16;" if channel == 0 else "and.b32 t, {}, 0xffff0000;"
        return how.format(word) + f" mov.b32 {name}, t;\n"

    def sigmoid(name):
        return (
            f"mul.f32 {name}, {name}, {f(-1 / _LN2)}; ex2.approx.ftz.f32 {name}, {name};\n"
            f"add.f32 {name}, {name}, {f(1.0)}; rcp.approx.ftz.f32 {name}, {name};\n"
        )

    def decay(channel):
        return (
            f"fma.rn.f32 l, slope{channel}, r{channel}, sh; min.NaN.f32 l, l, {f(0.0)};\n"
            "ex2.approx.ftz.f32 a, l;\n"
        )

    text += f"ld.shared.b32 k2, [pa + {(steps - 1) * row}]; ld.shared.b32 k3, [pd + {(steps - 1) * row}];\n"
    for step in reversed(range(steps)):
        at = step * row
        text += "mov.b32 k0, k2; mov.b32 k1, k3;\n"
        if step:
            text += f"ld.shared.b32 k2, [pa + {at - row}]; ld.shared.b32 k3, [pd + {at - row}];\n"
        text += f"ld.shared.f32 sh, [own + {4 * step}];\n"
        for c in range(2):
            text += widen(f"r{c}", "k0", c) + sigmoid(f"r{c}") + decay(c) + widen("g", "k1", c)
            text += f"add.f32 g, g, ha{c}; mul.f32 ha{c}, a, g; mul.f32 da{c}, da{c}, a;\n"
        text += f"st.shared.f32 [pa + {at}], r0; st.shared.f32 [pe + {at}], r1;\n"
    text += (
        "mad.lo.u32 t, warp, 512, ends; st.shared.v4.f32 [t], {da0, ha0, da1, ha1};\n"
        f"bar.sync 0, {threads};\n"
        f"mov.f32 da0, {f(1.0)}; mov.f32 da1, da0; mov.f32 ha0, {f(0.0)}; mov.f32 ha1, ha0;\n"
        f"setp.eq.u32 q0, warp, 0; @q0 mov.b32 u, {groups}; @!q0 mov.b32 u, warp;\n"
    )
    for group in range(groups):
        text += (
            f"setp.lt.u32 p, {group}, u;\n"
            f"@p ld.shared.v4.f32 {{x, i, r, l}}, [ends + {512 * group}];\n"
            "@p fma.rn.f32 ha0, x, ha0, i; @p fma.rn.f32 ha1, r, ha1, l;\n"
            "@p mul.f32 da0, da0, x; @p mul.f32 da1, da1, r;\n"
        )
    text += (
        "@!q0 bra OTHERS;\n"
        "mad.wide.u32 wide, lane, 8, $9;\n"
        "AGAIN:\n"
        "ld.relaxed.gpu.global.v2.b32 {e0, e1}, [wide];\n"
        f"setp.eq.u32 p, e0, {EMPTY}; @!p setp.eq.u32 p, e1, {EMPTY};\n"
        "@p bra AGAIN;\n"
        "mov.b32 s0, e0; mov.b32 s1, e1;\n"
        "fma.rn.f32 da0, da0, s0, ha0; fma.rn.f32 da1, da1, s1, ha1;\n"
        "mov.b32 e0, da0; mov.b32 e1, da1;\n"
        "setp.nan.f32 p, da0, da0; @p mov.b32 e0, 0x7fc00000;\n"
        "setp.nan.f32 p, da1, da1; @p mov.b32 e1, 0x7fc00000;\n"
        "mad.wide.u32 wide, lane, 8, $10; st.relaxed.gpu.global.v2.b32 [wide], {e0, e1};\n"
        f"mad.lo.u32 t, lane, 8, $7; st.shared.v2.f32 [t + {512 * groups}], {{s0, s1}};\n"
        f"mov.f32 da0, {f(1.0)}; mov.f32 da1, da0; mov.f32 ha0, {f(0.0)}; mov.f32 ha1, ha0;\n"
        "OTHERS:\n"
        f"bar.sync 0, {threads};\n"
        f"mad.lo.u32 t, lane, 8, $7; ld.shared.v2.f32 {{s0, s1}}, [t + {512 * groups}];\n"
        "fma.rn.f32 s0, da0, s0, ha0; fma.rn.f32 s1, da1, s1, ha1;\n"
        f"mov.f32 sum0, {f(0.0)}; mov.f32 sum1, sum0;\n"
    )
    for step in reversed(range(steps)):
        at = step * row
        text += (
            f"ld.shared.b32 k0, [px + {at}]; ld.shared.b32 k1, [pi + {at}];\n"
            f"ld.shared.b32 k2, [pd + {at}]; ld.shared.b32 k3, [ph + {at}];\n"
            f"ld.shared.f32 r0, [pa + {at}]; ld.shared.f32 r1, [pe + {at}];\n"
            f"ld.shared.f32 sh, [own + {4 * step}];\n"
        )
        text += widen("hb0", "k3", 0) + widen("hb1", "k3", 1)
        if step == 0:
            text += (
                "add.u32 t, rev, $12; setp.eq.u32 first, t, 0; mad.wide.u32 wide, lane, 8, $11;\n"
                "@first ld.global.v2.f32 {hb0, hb1}, [wide];\n"
            )
        for c in range(2):
            text += widen("x", "k0", c) + widen("i", "k1", c) + widen("g", "k2", c)
            text += sigmoid("i") + decay(c)
            text += f"add.f32 g, g, s{c}; mul.f32 s{c}, a, g;\n"
            text += f"mul.f32 z, l, l; fma.rn.f32 q, z, {f(-(_LN2**5) / 60)}, {f(-(_LN2**3) / 3)};\n"
            text += f"fma.rn.f32 q, z, q, {f(-2 * _LN2)}; mul.f32 v, a, l; mul.f32 q, q, v;\n"
            text += f"neg.f32 v, a; fma.rn.f32 v, v, a, {f(1.0)}; setp.gt.f32 p, l, {f(-0.375)};\n"
            text += "selp.f32 q, q, v, p; sqrt.approx.ftz.f32 m, q;\n"
            text += f"max.NaN.f32 q, q, {f(_MIN_SQUARE)}; rsqrt.approx.ftz.f32 q, q;\n"
            text += "mul.f32 m, m, g; mul.f32 v, i, x;\n"  # gm and i x
            text += f"mul.f32 z, v, a; neg.f32 z, z; fma.rn.f32 z, z, q, hb{c}; mul.f32 z, z, s{c};\n"
            text += f"mul.f32 z, z, {f(_LN2)}; setp.gt.f32 p, sh, {f(0.0)}; selp.f32 z, {f(0.0)}, z, p;\n"
            text += f"mul.f32 z, z, r{c}; add.f32 sum{c}, sum{c}, z;\n"  # dlog r
            text += f"sub.f32 n, {f(1.0)}, r{c}; mul.f32 n, n, slope{c}; mul.f32 r{c}, z, n;\n"
            text += f"sub.f32 n, {f(1.0)}, i; mul.f32 v, v, n;\n"
            if c == 0:
                text += "mul.f32 b, m, i; mul.f32 hb0, m, v;\n"
            else:
                text += "mul.f32 x, m, i; mul.f32 v, m, v;\n"
        text += (
            f"cvt.rn.bf16x2.f32 w, x, b; st.shared.b32 [px + {at}], w;\n"
            f"cvt.rn.bf16x2.f32 w, v, hb0; st.shared.b32 [pi + {at}], w;\n"
            f"cvt.rn.bf16x2.f32 w, r1, r0; st.shared.b32 [pa + {at}], w;\n"
        )
    text += (
        "mad.lo.u32 t, warp, 512, ends; st.shared.v2.f32 [t], {sum0, sum1};\n"
        f"bar.sync 0, {threads};\n"
        "@!q0 bra DONE;\n"
    )
    for group in range(1, groups):
        text += f"ld.shared.v2.f32 {{x, i}}, [ends + {512 * group}]; add.f32 sum0, sum0, x; add.f32 sum1, sum1, i;\n"
    return text + "mad.wide.u32 wide, lane, 8, $13; st.global.v2.f32 [wide], {sum0, sum1};\nDONE:\n}"


def _run_backward(groups, steps, ctx, x, gate_x, gate_a, dh, h, extra, shift, ends, slope, states,
                  hidden, sums, before, after, initial, chunk, total):  # fmt: skip
    del ctx
    shared = x, gate_x, gate_a, dh, h, extra, shift, ends, slope
    arguments = [ptx.address(ref) for ref in shared]
    arguments += [ptx.element_address(states, ptx.number(place)) for place in (before, after)]
    arguments += [ptx.element_address(hidden, ptx.number(initial)), ptx.number(chunk)]
    arguments += [ptx.element_address(sums, ptx.number(total))]
    kinds = "r," * 9 + "l,l,l,r,l"
    ptx.asm(_backward_text(groups, steps), kinds, arguments, 0)


def backward(x, gate_x, gate_a, slope, hidden, shift, h, dh, dlast, *, groups=16, steps=8):
    batch, time, width = x.shape
    chunk_steps = groups * steps
    count, tiles = -(-time // chunk_steps), width // CHANNELS
    share = batch // len(slope)
    warpgroups = groups // 4
    empty = jnp.full((batch, count, width), EMPTY, jnp.int32)
    bits = lax.bitcast_convert_type(dlast, jnp.int32)
    bits = jnp.where(dlast == dlast, bits, 0x7FC00000)
    states = jnp.concatenate([bits[:, None], empty], axis=1)

    def body(
        x_gmem, gate_x_gmem, gate_a_gmem, dh_gmem, h_gmem, slope_gmem, shift_gmem, hidden_gmem,
        states_gmem, dx_gmem, dgate_x_gmem, dgate_a_gmem, dslope_gmem,
        x_smem, gate_x_smem, gate_a_smem, dh_smem, h_smem, extra, slope_smem, shift_smem, ends, full,
    ):  # fmt: skip
        program, group = lax.axis_index("program"), lax.axis_index("group")
        tile = lax.rem(program, tiles)
        both = lax.div(program, tiles)
        row, turn = lax.rem(both, batch), lax.div(both, batch)
        chunk = count - 1 - turn
        channels = pl.ds(tile * CHANNELS, CHANNELS)
        begin = chunk * chunk_steps

        @pl.when(group == 0)
        def _():
            own = pl.ds(begin, chunk_steps)
            copy = plgpu.copy_gmem_to_smem
            copy(gate_a_gmem.at[row, own, channels], gate_a_smem, full)
            copy(dh_gmem.at[row, own, channels], dh_smem, full)
            copy(x_gmem.at[row, own, channels], x_smem, full)
            copy(gate_x_gmem.at[row, own, channels], gate_x_smem, full)
            copy(h_gmem.at[row, pl.ds(begin - 1, chunk_steps), channels], h_smem, full)
            copy(slope_gmem.at[lax.div(row, share), channels], slope_smem, full)
            copy(shift_gmem.at[row, own], shift_smem, full)

        plgpu.barrier_wait(full)
        before = (row * (count + 1) + turn) * width + tile * CHANNELS
        call = plgpu.inline_mgpu(arg_types=(*[_REF()] * 12, *[_NUMBER] * 5))
        call(functools.partial(_run_backward, groups, steps))(
            x_smem, gate_x_smem, gate_a_smem, dh_smem, h_smem, extra, shift_smem, ends, slope_smem,
            states_gmem, hidden_gmem, dslope_gmem, before, before + width,
            row * width + tile * CHANNELS, chunk, (row * count + chunk) * width + tile * CHANNELS,
        )  # fmt: skip
        plgpu.commit_smem()
        part = chunk_steps // warpgroups
        own = pl.ds((warpgroups - 1 - group) * part, part)
        place = pl.ds(begin + (warpgroups - 1 - group) * part, part)
        for source, target in (
            (x_smem, dx_gmem), (gate_x_smem, dgate_x_gmem), (gate_a_smem, dgate_a_gmem)
        ):  # fmt: skip
            plgpu.copy_smem_to_gmem(source.at[own], target.at[row, place, channels])
        plgpu.wait_smem_to_gmem(0)

    tile_type = plgpu.SMEM((chunk_steps, CHANNELS), x.dtype)
    scratch = [
        *[tile_type] * 6,
        plgpu.SMEM((CHANNELS,), jnp.float32),
        plgpu.SMEM((chunk_steps,), jnp.float32),
        plgpu.SMEM((groups * 128 + CHANNELS,), jnp.float32),
        plgpu.Barrier(num_arrivals=7),
    ]
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    (dx, dgate_x, dgate_a, dslope), [states] = launch.launch_in_place(
        body,
        [x, gate_x, gate_a, dh, h, slope, padded(shift, chunk_steps), hidden],
        [states],
        [like, like, like, jax.ShapeDtypeStruct((batch, count, width), jnp.float32)],
        scratch,
        name="rg_lru_backward",
        grid=(count * batch * tiles,),
        grid_names=("program",),
        num_threads=warpgroups,
        thread_name="group",
    )
    dslope = dslope.reshape(len(slope), -1, width).sum(axis=1)
    dhidden = lax.bitcast_convert_type(states[:, -1], jnp.float32)
    return dx, dgate_x, dgate_a, dslope, dhidden
