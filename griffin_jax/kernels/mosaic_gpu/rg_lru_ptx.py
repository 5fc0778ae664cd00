"""What the threads of a block do with a chunk of time of the RG-LRU, as PTX.

A chunk is 128 steps of 64 channels in shared memory, each input by itself. A warp has a group of
consecutive steps, a lane two channels, which are one word of 16-bit inputs. Twice it runs through
the group: first from a state of zero, for what the group makes of a state; then, once the
state that enters is known, from that. Meanwhile float32 numbers lie where its words of inputs were
read, so that few registers are taken and several blocks share a multiprocessor.
"""

import math

from griffin_jax.kernels.mosaic_gpu import ptx
from griffin_jax.kernels.rg_lru_pallas_gpu import MIN_SQUARE, PADDING, RESET
from griffin_jax.kernels.time_chunks_gpu import EMPTY, NAN

CHANNELS = 64  # of a block
_AT_ONCE = 2  # steps whose inputs are read while those before are worked out
_LN2 = math.log(2)
_ROW = 2 * CHANNELS  # bytes of a step
_ENDS = 16 * 32  # bytes of a group's: decay and sum of two channels for each lane
_f = ptx.literal
ONE, ZERO = _f(1.0), _f(0.0)


def ends_size(groups: int) -> int:
    """Returns how many float32 groups exchange: their ends, and the state that enters the chunk."""
    return groups * _ENDS // 4 + CHANNELS


def forward(groups: int, steps: int) -> str:
    """Returns the forward pass, which writes h where x was.

    Arguments: addresses in shared memory of x, gate_x, gate_a, a fourth box, the positions, the ends
    and the slopes; the number of the first step, the row's length and whether the chunk comes last;
    in memory of the state that enters, of the one that leaves, and of what leaves the last chunk.
    """
    text = _begin(groups, steps, boxes=4, backward=False)

    def load(first):
        return "".join(
            f"ld.shared.b32 n{3 * at + box}, [b{box} + {(first + at) * _ROW}];\n"
            for at in range(_AT_ONCE)
            for box in range(3)
        ) + "".join(
            f"ld.shared.f32 f{at}, [shifts + {4 * (first + at)}];\n" for at in range(_AT_ONCE)
        )

    text += load(0)
    for first in range(0, steps, _AT_ONCE):
        for at in range(_AT_ONCE):
            for box in range(3):
                text += f"mov.b32 k{3 * at + box}, n{3 * at + box};\n"
            text += f"mov.f32 y{at}, f{at};\n"
        if first + _AT_ONCE < steps:
            text += load(first + _AT_ONCE)
        for at in range(_AT_ONCE):
            for c in range(2):
                text += _widen("x", f"k{3 * at}", c)
                text += _widen("i", f"k{3 * at + 1}", c) + _widen("r", f"k{3 * at + 2}", c)
                text += _both_sigmoids() + _decay("r", c, f"y{at}") + _square()
                text += "sqrt.approx.ftz.f32 q, q; mul.f32 i, i, x; mul.f32 i, i, q;\n"
                text += f"mul.f32 d{c}, d{c}, a; fma.rn.f32 h{c}, a, h{c}, i;\n"
            for index, name in enumerate(("d0", "h0", "h1", "d1")):
                text += f"mov.f32 o{4 * at + index}, {name};\n"
        for at in range(_AT_ONCE):
            for box in range(4):
                text += f"st.shared.f32 [b{box} + {(first + at) * _ROW}], o{4 * at + box};\n"
    text += _enter(groups, ends=5, numbers=7)
    for first in range(0, steps, _AT_ONCE):
        for at in range(_AT_ONCE):
            for box in range(4):
                text += f"ld.shared.f32 o{4 * at + box}, [b{box} + {(first + at) * _ROW}];\n"
        for at in range(_AT_ONCE):
            text += (
                f"fma.rn.f32 h0, o{4 * at}, s0, o{4 * at + 1};\n"
                f"fma.rn.f32 h1, o{4 * at + 3}, s1, o{4 * at + 2};\n"
                f"cvt.rn.bf16x2.f32 k{at}, h1, h0;\n"
            )
        for at in range(_AT_ONCE):
            text += f"st.shared.b32 [b0 + {(first + at) * _ROW}], k{at};\n"
    return text + "}"


def backward(groups: int, steps: int) -> str:
    """Returns the backward pass, which writes the gradients of x and the gates where those were.

    Time runs back: the first warp has the last group, and what enters is a_t g_t of the step after.
    Arguments: addresses in shared memory of x, gate_x, gate_a, dh, h of the steps before, a sixth
    box, the positions, the ends and the slopes; the three numbers of `forward`; in memory of the
    a_t g_t that enters, of the one that leaves, of what leaves the last chunk, of the state before
    all time and of the slopes' gradients.
    """
    text = _begin(groups, steps, boxes=6, backward=True)

    def load(first):
        text = ""
        for at in range(_AT_ONCE):
            offset = (first - at) * _ROW
            text += f"ld.shared.b32 n{2 * at}, [b2 + {offset}];\n"
            text += f"ld.shared.b32 n{2 * at + 1}, [b3 + {offset}];\n"
            text += f"ld.shared.f32 f{at}, [shifts + {4 * (first - at)}];\n"
        return text

    text += load(steps - 1)
    for first in range(steps - 1, -1, -_AT_ONCE):
        for at in range(_AT_ONCE):
            text += f"mov.b32 k{2 * at}, n{2 * at}; mov.b32 k{2 * at + 1}, n{2 * at + 1};\n"
            text += f"mov.f32 y{at}, f{at};\n"
        if first >= _AT_ONCE:
            text += load(first - _AT_ONCE)
        for at in range(_AT_ONCE):
            for c in range(2):
                r = f"o{2 * at + c}"
                text += _widen(r, f"k{2 * at}", c) + _sigmoid(r) + _decay(r, c, f"y{at}")
                text += _widen("g", f"k{2 * at + 1}", c)
                text += f"add.f32 g, g, h{c}; mul.f32 h{c}, a, g; mul.f32 d{c}, d{c}, a;\n"
        for at in range(_AT_ONCE):
            offset = (first - at) * _ROW
            text += f"st.shared.f32 [b2 + {offset}], o{2 * at};\n"
            text += f"st.shared.f32 [b5 + {offset}], o{2 * at + 1};\n"
    text += _enter(groups, ends=7, numbers=9)
    text += f"mov.f32 sum0, {ZERO}; mov.f32 sum1, {ZERO};\n"
    for first in range(steps - 1, -1, -_AT_ONCE):
        for at in range(_AT_ONCE):
            offset = (first - at) * _ROW
            for index, box in enumerate((0, 1, 3, 4)):
                text += f"ld.shared.b32 k{4 * at + index}, [b{box} + {offset}];\n"
            text += f"ld.shared.f32 o{2 * at}, [b2 + {offset}];\n"
            text += f"ld.shared.f32 o{2 * at + 1}, [b5 + {offset}];\n"
            text += f"ld.shared.f32 y{at}, [shifts + {4 * (first - at)}];\n"
        for at in range(_AT_ONCE):
            text += _widen("h0", f"k{4 * at + 3}", 0) + _widen("h1", f"k{4 * at + 3}", 1)
            if first == at:
                text += (
                    "add.u32 t, group, $9; setp.eq.u32 p, t, 0; mad.wide.u32 wide, lane, 8, $15;\n"
                    "@p ld.global.v2.f32 {h0, h1}, [wide];\n"
                )
            for c in range(2):
                text += _gradients(4 * at, f"o{2 * at + c}", f"y{at}", c)
            for index, name in enumerate("dhr"):
                text += f"cvt.rn.bf16x2.f32 k{4 * at + index}, {name}1, {name}0;\n"
        for at in range(_AT_ONCE):
            for box in range(3):
                text += f"st.shared.b32 [b{box} + {(first - at) * _ROW}], k{4 * at + box};\n"
    text += (
        f"st.shared.v2.f32 [mine], {{sum0, sum1}};\nbar.sync 0, {32 * groups};\n@!first bra DONE;\n"
    )
    for group in range(1, groups):
        text += f"ld.shared.v2.f32 {{x, i}}, [ends + {_ENDS * group}];\n"
        text += "add.f32 sum0, sum0, x; add.f32 sum1, sum1, i;\n"
    text += "mad.wide.u32 wide, lane, 8, $16; st.global.v2.f32 [wide], {sum0, sum1};\n"
    return text + "DONE:\n}"


def _gradients(words, gate, shift, c):
    """Those of a step's x, gate_x and gate_a, as d, h and r, of its words and recurrence gate."""
    return (
        _widen("x", f"k{words}", c)
        + _widen("i", f"k{words + 1}", c)
        + _widen("g", f"k{words + 2}", c)
        + _sigmoid("i")
        + _decay(gate, c, shift)
        + _square()
        + f"add.f32 g, g, s{c}; mul.f32 s{c}, a, g;\n"
        "sqrt.approx.ftz.f32 m, q; mul.f32 m, m, g;\n"
        f"max.NaN.f32 q, q, {_f(MIN_SQUARE)}; rsqrt.approx.ftz.f32 q, q;\n"
        # The gradient of log2(a), which padding has none of.
        "mul.f32 v, i, x; mul.f32 z, v, a; neg.f32 z, z;\n"
        f"fma.rn.f32 z, z, q, h{c}; mul.f32 z, z, s{c}; mul.f32 z, z, {_f(_LN2)};\n"
        f"setp.gt.f32 p, {shift}, {ZERO}; selp.f32 z, {ZERO}, z, p;\n"
        f"mul.f32 z, z, {gate}; add.f32 sum{c}, sum{c}, z;\n"
        f"sub.f32 q, {ONE}, {gate}; mul.f32 q, q, slope{c}; mul.f32 r{c}, z, q;\n"
        f"sub.f32 q, {ONE}, i; mul.f32 v, v, q;\n"
        f"mul.f32 d{c}, m, i; mul.f32 h{c}, m, v;\n"
    )


def _begin(groups, steps, *, boxes, backward):
    """Registers, the shifts of all steps, and a thread's places: in each box, among the shifts and
    among the ends.
    """
    shifts, ends, slopes, begin, length = (boxes + i for i in range(5))
    text = (
        "{\n.reg .b32 lane, warp, group, shifts, ends, mine, t, u, e<2>, k<16>, n<12>, b<6>;\n"
        ".reg .b64 wide;\n.reg .pred p, first;\n"
        ".reg .f32 x, i, r, g, a, l, q, v, z, m, f<4>, y<4>, o<16>;\n"
        ".reg .f32 slope<2>, d<2>, h<2>, s<2>, r<2>, sum<2>;\n"
        f"mov.u32 t, %tid.x; mad.lo.u32 mine, t, 4, ${shifts}; add.u32 u, t, ${begin};\n"
        f"setp.lt.u32 first, t, {groups * steps};\n"
        f"@first ld.shared.b32 e0, [mine];\n"
        f"setp.eq.u32 p, e0, 0; selp.f32 v, {_f(RESET)}, {ZERO}, p;\n"
        f"setp.lt.s32 p, u, ${length}; selp.f32 v, v, {_f(PADDING)}, p;\n"
        "@first st.shared.f32 [mine], v;\n"
        f"bar.sync 0, {32 * groups};\n"
        "and.b32 lane, t, 31; shr.u32 warp, t, 5; mov.b32 group, warp;\n"
    )
    if backward:
        text += f"sub.u32 group, {groups - 1}, warp;\n"
    text += f"mul.lo.u32 t, group, {steps * _ROW}; mad.lo.u32 t, lane, 4, t;\n"
    for box in range(boxes):
        text += f"add.u32 b{box}, t, ${box};\n"
    return text + (
        f"mad.lo.u32 shifts, group, {4 * steps}, ${shifts};\n"
        f"mad.lo.u32 ends, lane, 16, ${ends}; mad.lo.u32 mine, warp, {_ENDS}, ends;\n"
        f"mad.lo.u32 t, lane, 8, ${slopes}; ld.shared.v2.f32 {{slope0, slope1}}, [t];\n"
        f"mov.f32 d0, {ONE}; mov.f32 d1, {ONE}; mov.f32 h0, {ZERO}; mov.f32 h1, {ZERO};\n"
    )


def _widen(name, word, channel):
    how = f"shl.b32 t, {word}, 16;" if channel == 0 else f"and.b32 t, {word}, 0xffff0000;"
    return f"{how} mov.b32 {name}, t;\n"


def _sigmoid(name):
    return (
        f"mul.f32 {name}, {name}, {_f(-1 / _LN2)}; ex2.approx.ftz.f32 {name}, {name};\n"
        f"add.f32 {name}, {name}, {ONE}; rcp.approx.ftz.f32 {name}, {name};\n"
    )


def _both_sigmoids():
    """Those of i and r, by one reciprocal of a product that does not overflow."""
    text = ""
    for name in "ir":
        text += (
            f"mul.f32 {name}, {name}, {_f(-1 / _LN2)}; min.NaN.f32 {name}, {name}, {_f(60.0)};\n"
        )
        text += f"ex2.approx.ftz.f32 {name}, {name}; add.f32 {name}, {name}, {ONE};\n"
    return text + (
        "mul.f32 q, r, i; rcp.approx.ftz.f32 q, q; mul.f32 v, q, i; mul.f32 i, q, r;\n"
        "mov.f32 r, v;\n"
    )


def _decay(r, channel, shift):
    """log2(a), l, and a."""
    return (
        f"fma.rn.f32 l, slope{channel}, {r}, {shift}; min.NaN.f32 l, l, {ZERO};\n"
        "ex2.approx.ftz.f32 a, l;\n"
    )


def _square():
    """1 - a^2 as q; near a = 1 as -2 a sinh(log a) by its series, which loses no bits."""
    return (
        f"mul.f32 z, l, l; fma.rn.f32 q, z, {_f(-(_LN2**5) / 60)}, {_f(-(_LN2**3) / 3)};\n"
        f"fma.rn.f32 q, z, q, {_f(-2 * _LN2)}; mul.f32 v, a, l; mul.f32 q, q, v;\n"
        f"neg.f32 v, a; fma.rn.f32 v, v, a, {ONE}; setp.gt.f32 p, l, {_f(-0.375)};\n"
        "selp.f32 q, q, v, p;\n"
    )


def _enter(groups, *, ends, numbers):
    """Puts into s0 and s1 what enters a group, and passes on what leaves the chunk.

    d and h are the decay and the sum that a group makes of it. The first warp alone waits, for the
    words of its channels.
    """
    comes_last, before, after, last = (numbers + i for i in range(2, 6))
    text = (
        "st.shared.v4.f32 [mine], {d0, h0, d1, h1};\n"
        f"bar.sync 0, {32 * groups};\n"
        f"mov.f32 d0, {ONE}; mov.f32 d1, {ONE}; mov.f32 h0, {ZERO}; mov.f32 h1, {ZERO};\n"
        f"setp.eq.u32 first, warp, 0; mov.b32 u, warp; @first mov.b32 u, {groups};\n"
    )
    for group in range(groups):
        text += (
            f"setp.gt.u32 p, u, {group};\n"
            f"@p ld.shared.v4.f32 {{x, i, r, g}}, [ends + {_ENDS * group}];\n"
            "@p fma.rn.f32 h0, x, h0, i; @p fma.rn.f32 h1, r, h1, g;\n"
            "@p mul.f32 d0, d0, x; @p mul.f32 d1, d1, r;\n"
        )
    text += (
        "@!first bra OTHERS;\n"
        f"mad.wide.u32 wide, lane, 8, ${before};\n"
        "AGAIN:\n"
        "ld.relaxed.gpu.global.v2.b32 {e0, e1}, [wide];\n"
        f"setp.eq.u32 p, e0, {EMPTY}; @!p setp.eq.u32 p, e1, {EMPTY};\n"
        "@p bra AGAIN;\n"
        "mov.b32 s0, e0; mov.b32 s1, e1;\n"
        "fma.rn.f32 d0, d0, s0, h0; fma.rn.f32 d1, d1, s1, h1;\n"
    )
    for c in range(2):
        text += f"mov.b32 e{c}, d{c}; setp.nan.f32 p, d{c}, d{c}; @p mov.b32 e{c}, {NAN:#x};\n"
    state = groups * _ENDS
    return text + (
        f"setp.ne.u32 p, ${comes_last}, 0; selp.b64 wide, ${last}, ${after}, p;\n"
        "mad.wide.u32 wide, lane, 8, wide; st.relaxed.gpu.global.v2.b32 [wide], {e0, e1};\n"
        f"mad.lo.u32 t, lane, 8, ${ends}; st.shared.v2.f32 [t + {state}], {{s0, s1}};\n"
        f"mov.f32 d0, {ONE}; mov.f32 d1, {ONE}; mov.f32 h0, {ZERO}; mov.f32 h1, {ZERO};\n"
        "OTHERS:\n"
        f"bar.sync 0, {32 * groups};\n"
        f"mad.lo.u32 t, lane, 8, ${ends}; ld.shared.v2.f32 {{s0, s1}}, [t + {state}];\n"
        "fma.rn.f32 s0, d0, s0, h0; fma.rn.f32 s1, d1, s1, h1;\n"
    )
