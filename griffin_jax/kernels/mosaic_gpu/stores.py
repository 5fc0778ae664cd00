"""Where Mosaic GPU kernels put the sums of tensor cores, as PTX: memory, and other warpgroups' hands.

An array [64, n] of a warpgroup lies in registers as the tensor cores leave it.
"""

import functools
import math
from typing import Any

import jax.numpy as jnp
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu.fragmented_array import Tiling
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith

from griffin_jax.kernels.mosaic_gpu import ptx
from griffin_jax.kernels.mosaic_gpu.operand import DIVISOR, LARGEST
from griffin_jax.kernels.mosaic_gpu.plan import PIECE

WARPS = 4  # of a warpgroup
_REF = plgpu.RefType
_WGMMA = plgpu.Layout.WGMMA
_NUMBER = plgpu.Layout.WG_SPLAT


def store(acc, y, place, stride, rows=64, columns=None):
    """Writes acc [64, n] to memory: column c to y from `place` + c * `stride` on.

    Of it are written the first `rows`, 32 or 64, and the first `columns`, all of them by default.
    """
    columns = acc.shape[1] if columns is None else columns
    call = plgpu.inline_mgpu(arg_types=(_WGMMA, _REF(), _NUMBER))
    call(functools.partial(_store, stride, rows, columns))(acc, y, place)


def take_second_half(acc, sums, tile):
    """Returns what acc [64, n] has 32 rows below, for its first 32 rows; the others are undefined.

    Args:
      acc: The numbers of a warpgroup.
      sums: float32[tiles, 1024] in shared memory.
      tile: Which part of `sums` is this warpgroup's.
    """
    call = plgpu.inline_mgpu(
        arg_types=(_WGMMA, _REF(), _NUMBER),
        return_type=plgpu.ShapeDtypeStruct(acc.shape, jnp.float32, layout=_WGMMA),
    )
    return call(_take_second_half)(acc, sums, tile)


def store_rows(acc, y, place, rows):
    """Writes the first rows of acc [64, n] to float32, one behind the other from `place` on."""
    call = plgpu.inline_mgpu(arg_types=(_WGMMA, _REF(), _NUMBER))
    call(functools.partial(_store_rows, acc.shape[1], rows))(acc, y, place)


def store_operand(z, y, place, width, rows):
    """Writes z [64, 64], 64 inputs of a product, to an operand of that width; see `operand`.

    Args:
      z: float32, of which the first `rows` are written.
      y: The operand.
      place: Where the first row's first input is.
      width: The number of inputs.
      rows: How many there are.
    """
    call = plgpu.inline_mgpu(arg_types=(_WGMMA, _REF(), _NUMBER))
    call(functools.partial(_store_operand, width, rows))(z, y, place)


def store_gated(acc, y, place, width, biases, row):
    """Writes gelu(gate) * up to an operand, see `operand`: 32 inputs of a product for each column.

    These are 8 of each of the 64 in a piece of 256.

    Args:
      acc: [64, n], whose rows are 8 of the gate and 8 of what it gates, by turns. A warp's 8 are
        two of each 64.
      y: The operand.
      place: Where the first column's first input is.
      width: The number of inputs.
      biases: The biases of both, [width] each, or none.
      row: The number of the first input.
    """
    kinds = _WGMMA, _REF(), _NUMBER, _NUMBER, *[_REF()] * len(biases)
    call = plgpu.inline_mgpu(arg_types=kinds)
    call(functools.partial(_store_gated, width))(acc, y, place, row, *biases)


def layout_of_pieces(count):
    """Returns a layout of [count, 256], two or four pieces of a row, for `store_pieces`.

    A warp has a piece, or two have the same one; a thread has two numbers that lie side by side in
    each of its four parts, t its place in its warp those from 2 t on.
    """
    warps = (-4,) if count == WARPS else (-4, plgpu.Replicated(WARPS // count))
    return plgpu.Layout.TILED(Tiling(((count, PIECE), (64,), (2,))), warps, (-2,), -1)


def store_pieces(z, y, place):
    """Writes z float16[count, 256] of `layout_of_pieces` to an operand, see `operand`, from `place`
    on: what a thread has is 16 bytes.
    """
    count = z.shape[0]
    call = plgpu.inline_mgpu(arg_types=(layout_of_pieces(count), _REF(), _NUMBER))
    call(functools.partial(_store_pieces, count))(z, y, place)


def give(acc, sums, place):
    """Writes a warpgroup's acc to shared memory, for `take`: each thread what it has."""
    plgpu.inline_mgpu(arg_types=(_WGMMA, _REF(), _NUMBER))(_give)(acc, sums, place)


def take(acc, sums, place):
    """Returns acc plus the sums that another warpgroup has given."""
    call = plgpu.inline_mgpu(
        arg_types=(_WGMMA, _REF(), _NUMBER),
        return_type=plgpu.ShapeDtypeStruct(acc.shape, jnp.float32, layout=_WGMMA),
    )
    return call(_take)(acc, sums, place)


def _store(stride, rows, columns, ctx, acc, y, place):
    del ctx
    element = ir.MemRefType(y.type).element_type
    width = mgpu.utils.bytewidth(element)
    warp, row, four = ptx.places()
    first = ptx.add(ptx.number(place), ptx.times(warp, 16), row, ptx.times(four, 2 * stride))
    base = ptx.element_address(y, first)
    kind = {"f32": None, "bf16": "bf16", "f16": "f16"}[str(element)]
    for half, column, value in ptx.sums_of(acc):
        # A thread has columns `column` + 2 four.
        fours = min(4, -(-(columns - column) // 2))
        if fours <= 0:
            continue
        offset = (column * stride + 8 * half) * width
        text, when = "{ .reg .pred q; .reg .b16 v;\n", ""
        if rows < 64 or fours < 4:
            when = "@q "
            text += f"setp.lt.u32 q, $2, {rows // 16};\n"
            text += f"setp.lt.and.u32 q, $3, {fours}, q;\n"
        if kind is None:
            text += f"{when}st.global.f32 [$0 + {offset}], $1; }}"
        else:
            text += f"cvt.rn.{kind}.f32 v, $1; {when}st.global.b16 [$0 + {offset}], v; }}"
        ptx.asm(text, "l,f,r,r", [base, value, warp, four], 0)


def _store_rows(columns, rows, ctx, acc, y, place):
    del ctx
    warp, row, four = ptx.places()
    row = ptx.add(ptx.times(warp, 16), row)
    first = ptx.add(ptx.number(place), ptx.times(row, columns), ptx.times(four, 2))
    base = ptx.element_address(y, first)
    for half, column, even, odd in ptx.column_pairs(acc):
        text = f"{{ .reg .pred q; setp.lt.u32 q, $1, {max(rows - 8 * half, 0)};\n"
        text += f"@q st.global.v2.f32 [$0 + {4 * (column + 8 * half * columns)}], {{$2, $3}}; }}"
        ptx.asm(text, "l,r,f,f", [base, row, even, odd], 0)


def _store_operand(width, rows, ctx, z, y, place):
    del ctx
    warp, row, four = ptx.places()
    row = ptx.add(ptx.times(warp, 16), row)
    # In [4, 4, 2, quarter, 2], a thread's columns 8 j + 2 four and the next are a pair at
    # 64 (j / 2) + 32 (j % 2) + 8 four.
    first = ptx.add(ptx.number(place), ptx.times(row, width), ptx.times(four, 8))
    base = ptx.element_address(y, first)
    for half, column, even, odd in ptx.column_pairs(z):
        own = 64 * (column // 16) + 32 * (column // 8 % 2) + 8 * half * width
        text = f"{{ .reg .pred q; .reg .b32 v; setp.lt.u32 q, $1, {max(rows - 8 * half, 0)};\n"
        text += f"cvt.rn.f16x2.f32 v, $3, $2; @q st.global.b32 [$0 + {2 * own}], v; }}"
        ptx.asm(text, "l,r,f,f", [base, row, even, odd], 0)


def _store_pieces(count, ctx, z, y, place):
    del ctx
    warp, *_ = ptx.places()
    lane = ptx.asm("{ mov.u32 $0, %tid.x; and.b32 $0, $0, 31; }", "=r", [])
    piece = arith.shrui(warp, ptx.const((WARPS // count).bit_length() - 1))
    first = ptx.add(ptx.number(place), ptx.times(piece, PIECE), ptx.times(lane, 8))
    pairs = [mgpu.utils.bitcast(pair, ptx.i32()) for pair in z.registers.flat]
    text = "st.global.v4.b32 [$0], {$1, $2, $3, $4};"
    ptx.asm(text, "l,r,r,r,r", [ptx.element_address(y, first), *pairs], 0)


def _store_gated(width, ctx, acc, y, place, row, *biases):
    del ctx
    warp, own, four = ptx.places()
    first = ptx.add(ptx.number(place), ptx.times(warp, 8), own, ptx.times(four, 2 * width))
    base = ptx.element_address(y, first)
    place = ptx.asm(_INPUT, "=&r,r,r,r", [ptx.number(row), warp, own])
    kind = ir.F32Type.get()
    added: list[Any] = [mgpu.c(0.0, kind)] * 2
    for index, bias in enumerate(biases):
        load = ptx.LOAD[str(ir.MemRefType(bias.type).element_type)]
        found = ptx.element_address(bias, place)
        added[index] = ptx.asm(load, "=f,l", [found], effects=True, kind=kind)
    numbers = {(half, column): value for half, column, value in ptx.sums_of(acc)}
    for half, column in numbers:
        if not half:
            values = numbers[0, column], numbers[1, column], *added
            text = _GATE + f"st.global.b16 [$0 + {2 * column * width}], h; }}"
            ptx.asm(text, "l,f,f,f,f", [base, *values], 0)


_INPUT = """{
.reg .b32 t;
mad.lo.u32 $0, $2, 2, $1;
and.b32 t, $3, 1;
add.u32 $0, $0, t;
shr.u32 t, $3, 1;
mad.lo.u32 $0, t, 64, $0;
}"""
# gelu(gate) * up / 16 in float16, of gate $1 and up $2 and what is added to them.
_TURN = -2 * math.log2(math.e) * math.sqrt(2 / math.pi)
_GATE = f"""{{
.reg .f32 g, u, t;
.reg .b16 h;
add.f32 g, $1, $3;
add.f32 u, $2, $4;
mul.f32 t, g, g;
fma.rn.f32 t, t, {ptx.literal(0.044715 * _TURN)}, {ptx.literal(_TURN)};
mul.f32 t, t, g;
ex2.approx.ftz.f32 t, t;
add.f32 t, t, {ptx.literal(1)};
rcp.approx.ftz.f32 t, t;
mul.f32 t, t, g;
mul.f32 t, t, u;
mul.f32 t, t, {ptx.literal(1 / DIVISOR)};
min.f32 t, t, {ptx.literal(LARGEST)};
max.f32 t, t, {ptx.literal(-LARGEST)};
cvt.rn.f16.f32 h, t;
"""


def _own(sums, place, count):
    """Returns the address of a thread's numbers, each of which lies beside those of its neighbors."""
    thread = ptx.asm("{ mov.u32 $0, %tid.x; and.b32 $0, $0, 127; }", "=r", [])
    index = ptx.add(ptx.times(ptx.number(place), count * 128), thread)
    return ptx.add(ptx.address(sums), ptx.times(index, 4))


def _give(ctx, acc, sums, place):
    del ctx
    values = [value for *_, value in ptx.sums_of(acc)]
    base = _own(sums, place, len(values))
    for index, value in enumerate(values):
        ptx.asm(f"st.shared.f32 [$0 + {512 * index}], $1;", "r,f", [base, value], 0)


def _take(ctx, acc, sums, place):
    del ctx
    values = [value for *_, value in ptx.sums_of(acc)]
    base = _own(sums, place, len(values))
    after = []
    for index, value in enumerate(values):
        text = f"{{ .reg .f32 v; ld.shared.f32 v, [$2 + {512 * index}]; add.f32 $0, v, $1; }}"
        after.append(ptx.asm(text, "=f,f,r", [value, base], effects=True, kind=ir.F32Type.get()))
    return ptx.array_like(acc, after)


def _take_second_half(ctx, acc, sums, tile):
    del ctx
    values = [value for *_, value in ptx.sums_of(acc)]
    thread = ptx.asm("{ mov.u32 $0, %tid.x; and.b32 $0, $0, 127; }", "=r", [])
    own = arith.andi(thread, ptx.const(63))
    base = ptx.add(ptx.address(sums), ptx.times(ptx.number(tile), 4096), ptx.times(own, 4))
    after = []
    for begin in range(0, len(values), 16):
        if begin:
            mgpu.utils.warpgroup_barrier()
        some = values[begin : begin + 16]
        for index, value in enumerate(some):
            text = "{ .reg .pred q; setp.ge.u32 q, $2, 64;"
            text += f"@q st.shared.f32 [$0 + {256 * index}], $1; }}"
            ptx.asm(text, "r,f,r", [base, value, thread], 0)
        mgpu.utils.warpgroup_barrier()
        for index in range(len(some)):
            text = f"ld.shared.f32 $0, [$1 + {256 * index}];"
            after.append(ptx.asm(text, "=f,r", [base], effects=True, kind=ir.F32Type.get()))
    return ptx.array_like(acc, after)
