"""The parts of Mosaic GPU kernels that Pallas has no words for, as PTX."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, nvvm, vector

from griffin_jax.kernels.mosaic_gpu.plan import PIECE, TILE, Plan

_REF = plgpu.RefType
_WGMMA = plgpu.Layout.WGMMA
_NUMBER = plgpu.Layout.WG_SPLAT
_SIXTEEN = "0f41800000"
_LARGEST = "0f477fe000"  # of float16, 65504


def fill_table(codes, table, warpgroups):
    """Writes the table of pairs: the 256 of `codes`, 32 copies of each side by side."""
    plgpu.inline_mgpu(arg_types=(_REF(), _REF()))(functools.partial(_fill_table, warpgroups))(
        codes, table
    )


def consume(plan: Plan, x_layout, w_layout, acc, w, s, x, table, tile, part):
    """acc [64, n] + a tile of 64 x 256 weights times x [n, 256].

    Args:
      plan: The kernel's.
      x_layout: How x lies in shared memory.
      w_layout: How the weights do.
      acc: The sums before.
      w: uint8[rows, bytes] of a stage, of all tiles and parts.
      s: float32[rows, scales] of a stage.
      x: float16[n, inputs] of a stage.
      table: The result of `fill_table`.
      tile: Which tile of rows.
      part: Which part of the inputs.
    """
    types = _WGMMA, _REF(w_layout), _REF(), _REF(x_layout), _REF(), _NUMBER, _NUMBER
    call = plgpu.inline_mgpu(
        arg_types=types,
        return_type=plgpu.ShapeDtypeStruct((TILE, plan.columns), jnp.float32, layout=_WGMMA),
    )
    return call(functools.partial(_consume, plan))(acc, w, s, x, table, tile, part)


def store(acc, y, place, stride, columns):
    """Writes acc [64, columns] to memory: column c to y from `place` + c * `stride` on."""
    call = plgpu.inline_mgpu(arg_types=(_WGMMA, _REF(), _NUMBER))
    call(functools.partial(_store, stride, columns))(acc, y, place)


def give(acc, sums, place):
    """Writes a warpgroup's acc to shared memory, for `take`: each thread what it has."""
    plgpu.inline_mgpu(arg_types=(_WGMMA, _REF(), _NUMBER))(_give)(acc, sums, place)


def take(acc, sums, place):
    """acc and what another warpgroup has given."""
    call = plgpu.inline_mgpu(
        arg_types=(_WGMMA, _REF(), _NUMBER),
        return_type=plgpu.ShapeDtypeStruct(acc.shape, jnp.float32, layout=_WGMMA),
    )
    return call(_take)(acc, sums, place)


def _i32():
    return ir.IntegerType.get_signless(32)


def _asm(text, constraints, arguments, results=1, effects=False, kind=None) -> Any:
    """PTX of some results of one type; without results, it has effects."""
    kind = kind or _i32()
    if results == 0:
        llvm.inline_asm(
            ir.Type.parse("!llvm.void"), arguments, text, constraints, has_side_effects=True
        )
        return None
    if results == 1:
        return llvm.inline_asm(kind, arguments, text, constraints, has_side_effects=effects)
    struct = llvm.StructType.get_literal([kind] * results)
    found = llvm.inline_asm(struct, arguments, text, constraints, has_side_effects=effects)
    return [llvm.extractvalue(kind, found, [i]) for i in range(results)]


def _address(ref, bits=32):
    kind = ir.IntegerType.get_signless(bits)
    return llvm.ptrtoint(kind, mgpu.utils.memref_ptr(ref))


def _const(value):
    return mgpu.c(value, _i32())


def _number(array):
    return array.registers.item()


def _add(*values):
    return functools.reduce(arith.addi, values)


def _times(value, count):
    return arith.muli(value, _const(count))


def _fill_table(warpgroups, ctx, codes, table):
    del ctx
    threads = 128 * warpgroups
    text = (
        "{ .reg .b32 t, e, v, c, a; .reg .b64 p; .reg .pred q; mov.u32 t, %tid.x;\n"
        # Eight threads side by side begin at other banks.
    )
    for begin in range(0, 256, threads):
        text += (
            f"add.u32 e, t, {begin}; setp.lt.u32 q, e, 256; mad.lo.u32 a, e, 128, $0;\n"
            "mad.wide.u32 p, e, 4, $1; @q ld.global.b32 v, [p];\n"
        )
        for turn in range(8):
            text += (
                f"add.u32 c, t, {turn}; and.b32 c, c, 7; mad.lo.u32 c, c, 16, a;\n"
                "@q st.shared.v4.b32 [c], {v, v, v, v};\n"
            )
    _asm(text + "}", "r,l", [_address(table), _address(codes, 64)], 0)


_PLACES = """{
.reg .b32 thread;
mov.u32 thread, %tid.x;
and.b32 $2, thread, 3;
shr.u32 $1, thread, 2;
and.b32 $1, $1, 7;
shr.u32 $0, thread, 5;
and.b32 $0, $0, 3;
}"""


def _places():
    """A thread's warp of four, its row of eight and its place among four of the tensor cores."""
    return _asm(_PLACES, "=r,=r,=r", [], 3)


def _consume(plan, ctx, acc, w, s, x, table, tile, part):
    del ctx
    tile, part = _number(tile), _number(part)
    acc = mgpu.WGMMAAccumulator.from_registers(acc)
    warp, row, four = _places()

    # Weights lie in tiles of 8 rows x 128 bytes, the bytes of a row in chunks of 16 by exclusive or
    # with the row's number: of a row's 8 chunks a thread reads two side by side.
    eights = _add(_times(tile, TILE // 8), _times(warp, 2))
    chunk = _times(arith.xori(_times(four, 2), row), 16)
    first = _add(_address(w), _times(_add(_times(eights, plan.parts), part), 1024))
    first = _add(first, _times(row, 128), chunk)
    chunks = first, arith.xori(first, _const(16))

    pitch = plan.parts * plan.scales * 4
    rows = _add(_times(tile, TILE), _times(warp, 16), row)
    at = _add(_address(s), _times(rows, pitch), _times(part, plan.scales * 4))
    at = _add(at, _times(four, plan.scales))  # bytes: a fourth of a piece's scales
    own_scales = [_scales(plan.scales // 4, at, 8 * pitch * half) for half in range(2)]

    lane = _asm("{ .reg .b32 t; mov.u32 t, %tid.x; and.b32 t, t, 31; shl.b32 $0, t, 2; }", "=r", [])
    base = _add(_address(table), lane)
    pair = ir.VectorType.get((2,), ir.F16Type.get())
    like = mgpu.FragmentedArray.splat(mgpu.c(0.0, ir.F16Type.get()), (64, 64), mgpu.WGMMA_LAYOUT)
    words = {}

    def look_up(i):
        """Pairs of tile i of 64 inputs, [step, half of the step, half of the rows]."""
        j, begin = divmod(2 * i, 4)
        if not begin:
            for half in range(2):
                words[half] = _asm(
                    f"ld.shared.v4.b32 {{$0, $1, $2, $3}}, [$4 + {1024 * plan.parts * half}];",
                    "=r,=r,=r,=r,r",
                    [chunks[j]],
                    4,
                    effects=True,
                )
        found = np.empty((4, 2, 2), object)
        for half in range(2):
            for word in range(2):
                text = "{ .reg .b32 p<4>;\n"
                for byte in range(4):
                    # The byte times 128, the size of a pair's copies.
                    text += f"dp4a.u32.u32 p{byte}, $4, {0x80 << 8 * byte:#x}, $5;\n"
                    text += f"ld.shared.b32 ${byte}, [p{byte}];\n"
                got = _asm(
                    text + "}",
                    "=&r,=&r,=&r,=&r,r,r",
                    [words[half][begin + word], base],
                    4,
                    effects=plan.ahead,
                )
                found[2 * word : 2 * word + 2, :, half] = np.array(got, object).reshape(2, 2)
        return found

    def fragment(i, found):
        registers = np.empty(16, object)
        for index, value in enumerate(found.flat):
            scales = own_scales[index % 2]
            scale = scales[i * len(scales) // 4]
            value = _asm("mul.rn.f16x2 $0, $1, $2;", "=r,r,r", [value, scale])
            registers[index] = mgpu.utils.bitcast(value, pair)
        return mgpu.FragmentedArray(
            _registers=registers.reshape(like.registers.shape),
            _layout=like.layout,
            _is_signed=None,
        )

    if plan.parts > 1:
        begin = arith.index_cast(ir.IndexType.get(), _times(part, PIECE // 64))
        x = mgpu.memref_slice(x, (slice(None), mgpu.ds(begin, PIECE // 64)))
    following = look_up(0)
    for i in range(PIECE // 64):
        operand = fragment(i, following)
        if plan.ahead and i + 1 < PIECE // 64:
            following = look_up(i + 1)
        b = mgpu.memref_transpose(
            mgpu.memref_slice(x, (slice(None), slice(i, i + 1))), (1, 0, 3, 2)
        )
        acc = mgpu.wgmma(acc, operand, b, swizzle=128)
        nvvm.wgmma_commit_group_sync_aligned()
        # Where sums or warpgroups leave few registers, those of two tiles at a time.
        if plan.ahead or plan.consumers > 3 or plan.columns > 64:
            nvvm.wgmma_wait_group_sync_aligned(1)
        if not plan.ahead and i + 1 < PIECE // 64:
            following = look_up(i + 1)
    nvvm.wgmma_wait_group_sync_aligned(0)
    return acc.value


def _scales(count, address, offset):
    """Pairs of a row's scales in float16, those of one thread."""
    into = ", ".join(f"s{i}" for i in range(count))
    kind = "v2.f32" if count == 2 else "f32"
    text = f"{{ .reg .f32 s<{count}>;\n"
    text += f"ld.shared.{kind} {{{into}}}, [${count} + {offset}];\n"
    if count == 1:
        text = text.replace("{s0}", "s0")
    for i in range(count):
        text += f"mul.f32 s{i}, s{i}, {_SIXTEEN}; min.f32 s{i}, s{i}, {_LARGEST};\n"
        text += f"cvt.rn.f16x2.f32 ${i}, s{i}, s{i};\n"
    found = _asm(text + "}", ",".join(["=r"] * count + ["r"]), [address], count, effects=True)
    return found if count > 1 else [found]


def _registers(acc):
    """(row half, column, the number) of what a thread has of the sums."""
    for index, register in enumerate(acc.registers.flat):
        eight, half = divmod(index, 2)
        for odd in range(2):
            place = ir.DenseI64ArrayAttr.get([odd])
            value = vector.extract(register, dynamic_position=[], static_position=place)
            yield half, 8 * eight + odd, value


def _store(stride, columns, ctx, acc, y, place):
    del ctx, columns
    element = ir.MemRefType(y.type).element_type
    width = mgpu.utils.bytewidth(element)
    warp, row, four = _places()
    first = _add(_number(place), _times(warp, 16), row, _times(four, 2 * stride))
    i64 = ir.IntegerType.get_signless(64)
    first = arith.muli(arith.extui(i64, first), mgpu.c(width, i64))
    base = arith.addi(_address(y, 64), first)
    kind = {"f32": None, "bf16": "bf16", "f16": "f16"}[str(element)]
    for half, column, value in _registers(acc):
        offset = (column * stride + 8 * half) * width
        if kind is None:
            text = f"st.global.f32 [$0 + {offset}], $1;"
        else:
            text = f"{{ .reg .b16 v; cvt.rn.{kind}.f32 v, $1; st.global.b16 [$0 + {offset}], v; }}"
        _asm(text, "l,f", [base, value], 0)


def _own(sums, place, count):
    """The address of a thread's numbers, each of which lies beside those of its neighbors."""
    thread = _asm("{ mov.u32 $0, %tid.x; and.b32 $0, $0, 127; }", "=r", [])
    return _add(_address(sums), _times(_add(_times(_number(place), count * 128), thread), 4))


def _give(ctx, acc, sums, place):
    del ctx
    values = [value for *_, value in _registers(acc)]
    base = _own(sums, place, len(values))
    for index, value in enumerate(values):
        _asm(f"st.shared.f32 [$0 + {512 * index}], $1;", "r,f", [base, value], 0)


def _take(ctx, acc, sums, place):
    del ctx
    values = [value for *_, value in _registers(acc)]
    base = _own(sums, place, len(values))
    after = []
    for index, value in enumerate(values):
        text = f"{{ .reg .f32 v; ld.shared.f32 v, [$2 + {512 * index}]; add.f32 $0, v, $1; }}"
        after.append(_asm(text, "=f,f,r", [value, base], effects=True, kind=ir.F32Type.get()))
    pairs = np.empty(len(after) // 2, object)
    kind = ir.VectorType.get((2,), ir.F32Type.get())
    for index in range(len(pairs)):
        pairs[index] = vector.from_elements(kind, after[2 * index : 2 * index + 2])
    return mgpu.FragmentedArray(
        _registers=pairs.reshape(acc.registers.shape), _layout=acc.layout, _is_signed=None
    )
