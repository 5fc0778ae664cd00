"""The parts of Mosaic GPU kernels that Pallas has no words for, as PTX."""

import functools

import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, nvvm

from griffin_jax.kernels.mosaic_gpu import ptx
from griffin_jax.kernels.mosaic_gpu.operand import DIVISOR, LARGEST
from griffin_jax.kernels.mosaic_gpu.plan import PIECE, TILE, Plan

_REF = plgpu.RefType
_WGMMA = plgpu.Layout.WGMMA
_NUMBER = plgpu.Layout.WG_SPLAT


def fill_table(codes, table, warpgroups):
    """Writes the table of pairs: the 256 of `codes`, 32 copies of each side by side."""
    plgpu.inline_mgpu(arg_types=(_REF(), _REF()))(functools.partial(_fill_table, warpgroups))(
        codes, table
    )


def prefetch(array, block, blocks, parts, size):
    """Has the second-level cache fetch the first `size` bytes of each of `parts` parts of all rows.

    Each of `blocks` asks for some, by the threads of a warpgroup; `array` is [rows, columns].
    """
    call = plgpu.inline_mgpu(arg_types=(_REF(), _NUMBER))
    call(functools.partial(_prefetch, blocks, parts, size))(array, block)


def read_biases(biases, first):
    """Returns what `add_biases` adds to 64 rows: 32 of the one's biases, 32 of the other's.

    Both are read from number `first` on.
    """
    call = plgpu.inline_mgpu(
        arg_types=(_REF(), _REF(), _NUMBER),
        return_type=plgpu.ShapeDtypeStruct((TILE, 8), jnp.float32, layout=_WGMMA),
    )
    return call(_read_biases)(*biases, first)


def add_biases(acc, biases):
    """Returns acc [64, n] plus the result of `read_biases`."""
    call = plgpu.inline_mgpu(
        arg_types=(_WGMMA, _WGMMA),
        return_type=plgpu.ShapeDtypeStruct(acc.shape, jnp.float32, layout=_WGMMA),
    )
    return call(_add_biases)(acc, biases)


def consume(plan: Plan, x_layout, w_layout, acc, w, s, x, table, tile, part):
    """Returns acc [64, n] plus a tile of 64 x 256 weights times x [n, 256].

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
    ptx.asm(text + "}", "r,l", [ptx.address(table), ptx.address(codes, 64)], 0)


def _prefetch(blocks, parts, size, ctx, array, block):
    del ctx
    kind = ir.MemRefType(array.type)
    rows, columns = kind.shape
    pitch = columns * mgpu.utils.bytewidth(kind.element_type) // parts
    each = -(-rows * parts // blocks)
    text = "{ .reg .b32 t, e; .reg .b64 a; .reg .pred q; mov.u32 t, %tid.x; and.b32 t, t, 127;\n"
    for begin in range(0, each, 128):
        text += f"add.u32 e, t, {begin}; setp.lt.u32 q, e, {each}; mad.lo.u32 e, $1, {each}, e;\n"
        text += f"setp.lt.and.u32 q, e, {rows * parts}, q; mad.wide.u32 a, e, {pitch}, $0;\n"
        text += f"@q cp.async.bulk.prefetch.L2.global [a], {size};\n"
    ptx.asm(text + "}", "l,r", [ptx.address(array, 64), ptx.number(block)], 0)


def _read_biases(ctx, gate, up, first):
    del ctx
    warp, row, _ = ptx.places()
    place = ptx.add(ptx.number(first), ptx.times(arith.andi(warp, ptx.const(1)), 16), row)
    element = ir.MemRefType(gate.type).element_type
    text = "{ .reg .pred q; .reg .b64 a; setp.lt.u32 q, $3, 2; selp.b64 a, $1, $2, q;\n"
    text += ptx.LOAD[str(element)].replace("$1", "a") + " }"
    values = []
    for half in range(2):
        own = ptx.add(place, ptx.const(8 * half))
        addresses = [ptx.element_address(bias, own) for bias in (gate, up)]
        kind = ir.F32Type.get()
        values.append(ptx.asm(text, "=f,l,l,r", [*addresses, warp], effects=True, kind=kind))
    return _of_rows((TILE, 8), values)


def _add_biases(ctx, acc, biases):
    del ctx
    values = {half: value for half, _, value in ptx.sums_of(biases)}
    return acc + _of_rows(acc.shape, values)


def _of_rows(shape, values):
    """Returns an array whose rows are all of a number, which is `values[half]` in each half."""
    zero = mgpu.c(0.0, ir.F32Type.get())
    like = mgpu.FragmentedArray.splat(zero, shape, mgpu.WGMMA_LAYOUT)
    return ptx.array_like(like, [values[half] for half, *_ in ptx.sums_of(like)])


def _consume(plan, ctx, acc, w, s, x, table, tile, part):
    del ctx
    tile, part = ptx.number(tile), ptx.number(part)
    acc = mgpu.WGMMAAccumulator.from_registers(acc)
    warp, row, four = ptx.places()

    # Weights lie in tiles of 8 rows x 128 bytes, the bytes of a row in chunks of 16 by exclusive or
    # with the row's number: of a row's 8 chunks a thread reads two side by side.
    # A thread has a row of two tiles, those of its warp or the same one of two weights. Of two
    # weights a warp has two rows of each of four tiles, whose results are next to one another.
    if plan.gated:
        eights = ptx.add(ptx.times(tile, 4), arith.shrui(row, ptx.const(1)))
        row = ptx.add(ptx.times(warp, 2), arith.andi(row, ptx.const(1)))
        apart = 4 * plan.tiles
    else:
        eights = ptx.add(ptx.times(tile, TILE // 8), ptx.times(warp, 2))
        apart = 1
    chunk = ptx.times(arith.xori(ptx.times(four, 2), row), 16)
    first = ptx.add(ptx.address(w), ptx.times(ptx.add(ptx.times(eights, plan.parts), part), 1024))
    first = ptx.add(first, ptx.times(row, 128), chunk)
    chunks = first, arith.xori(first, ptx.const(16))

    pitch = plan.parts * plan.scales * 4
    rows = ptx.add(ptx.times(eights, 8), row)
    at = ptx.add(ptx.address(s), ptx.times(rows, pitch), ptx.times(part, plan.scales * 4))
    at = ptx.add(at, ptx.times(four, plan.scales))  # bytes: a fourth of a piece's scales
    own_scales = [_scales(plan.scales // 4, at, 8 * apart * pitch * half) for half in range(2)]

    lane = ptx.asm(
        "{ .reg .b32 t; mov.u32 t, %tid.x; and.b32 t, t, 31; shl.b32 $0, t, 2; }", "=r", []
    )
    base = ptx.add(ptx.address(table), lane)
    pair = ir.VectorType.get((2,), ir.F16Type.get())
    like = mgpu.FragmentedArray.splat(mgpu.c(0.0, ir.F16Type.get()), (64, 64), mgpu.WGMMA_LAYOUT)
    words = {}

    def look_up(i):
        """Pairs of tile i of 64 inputs, [step, half of the step, half of the rows]."""
        j, begin = divmod(2 * i, 4)
        if not begin:
            for half in range(2):
                words[half] = ptx.asm(
                    f"ld.shared.v4.b32 {{$0, $1, $2, $3}}, [$4 + {1024 * plan.parts * apart * half}];",
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
                got = ptx.asm(
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
            value = ptx.asm("mul.rn.f16x2 $0, $1, $2;", "=r,r,r", [value, scale])
            registers[index] = mgpu.utils.bitcast(value, pair)
        return mgpu.FragmentedArray(
            _registers=registers.reshape(like.registers.shape),
            _layout=like.layout,
            _is_signed=None,
        )

    if plan.parts > 1:
        begin = arith.index_cast(ir.IndexType.get(), ptx.times(part, PIECE // 64))
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
        text += f"mul.f32 s{i}, s{i}, {ptx.literal(DIVISOR)}; min.f32 s{i}, s{i}, {ptx.literal(LARGEST)};\n"
        text += f"cvt.rn.f16x2.f32 ${i}, s{i}, s{i};\n"
    found = ptx.asm(text + "}", ",".join(["=r"] * count + ["r"]), [address], count, effects=True)
    return found if count > 1 else [found]
