"""Words for PTX in Mosaic GPU kernels: integers, addresses, and which part of an array is a thread's."""

import functools
from typing import Any

import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, vector


def i32():
    return ir.IntegerType.get_signless(32)


def i64():
    return ir.IntegerType.get_signless(64)


def asm(text, constraints, arguments, results=1, effects=False, kind=None) -> Any:
    """Returns PTX of some results of one type; without results, it has effects."""
    kind = kind or i32()
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


def literal(value: float) -> str:
    """Returns a float32 as PTX spells it."""
    return f"0f{np.float32(value).view(np.uint32):08x}"


def address(ref, bits=32):
    kind = ir.IntegerType.get_signless(bits)
    return llvm.ptrtoint(kind, mgpu.utils.memref_ptr(ref))


def element_address(ref, index):
    """Returns where the element of that number is in memory."""
    size = mgpu.utils.bytewidth(ir.MemRefType(ref.type).element_type)
    offset = arith.muli(arith.extui(i64(), index), mgpu.c(size, i64()))
    return arith.addi(address(ref, 64), offset)


def const(value):
    return mgpu.c(value, i32())


def number(array):
    """Returns the number that an array of a single one holds."""
    return array.registers.item()


def add(*values):
    return functools.reduce(arith.addi, values)


def times(value, count):
    return arith.muli(value, const(count))


_PLACES = """{
.reg .b32 thread;
mov.u32 thread, %tid.x;
and.b32 $2, thread, 3;
shr.u32 $1, thread, 2;
and.b32 $1, $1, 7;
shr.u32 $0, thread, 5;
and.b32 $0, $0, 3;
}"""


def places():
    """Returns a thread's warp of four, its row of eight and its place among four of the tensor
    cores.
    """
    return asm(_PLACES, "=r,=r,=r", [], 3)


def sums_of(acc):
    """Yields (row half, column, the number) of what a thread has of an array [64, n] in their
    layout.
    """
    for index, register in enumerate(acc.registers.flat):
        eight, half = divmod(index, 2)
        for odd in range(2):
            place = ir.DenseI64ArrayAttr.get([odd])
            value = vector.extract(register, dynamic_position=[], static_position=place)
            yield half, 8 * eight + odd, value


def column_pairs(acc):
    """Yields (row half, column, its number and that of the next column) of what a thread has."""
    found = list(sums_of(acc))
    for (half, column, even), (*_, odd) in zip(found[::2], found[1::2], strict=True):
        yield half, column, even, odd


def array_like(acc, values):
    """Returns an array whose numbers are these, in the order of `sums_of`."""
    pairs = np.empty(len(values) // 2, object)
    kind = ir.VectorType.get((2,), ir.F32Type.get())
    for index in range(len(pairs)):
        pairs[index] = vector.from_elements(kind, values[2 * index : 2 * index + 2])
    return mgpu.FragmentedArray(
        _registers=pairs.reshape(acc.registers.shape), _layout=acc.layout, _is_signed=None
    )


# A float32 $0 from memory at $1.
LOAD = {
    "f32": "ld.global.f32 $0, [$1];",
    "f16": "{ .reg .b16 h; ld.global.b16 h, [$1]; cvt.f32.f16 $0, h; }",
    "bf16": "{ .reg .b16 h, z; mov.b16 z, 0; ld.global.b16 h, [$1]; mov.b32 $0, {z, h}; }",
}
