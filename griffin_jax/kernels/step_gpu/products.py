"""Products of some rows of a weight, 4-bit or plain, with one vector that a program holds."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from griffin_jax.quantization import codes
from griffin_jax.quantization.tensor import QuantizedTensor

_WORD = 4  # bytes that are looked up and multiplied together
_LARGEST = 4096  # weights of a row in one tile


def powers(size: int, largest: int = _LARGEST) -> list[int]:
    """Powers of two that add up to `size`, the largest first: tiles have such sizes."""
    rest = size % largest
    return [largest] * (size // largest) + [
        1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1
    ]


def hold(load, size: int, packed: bool) -> list[tuple]:
    """Loads a vector into registers, as `rows_times` takes it.

    Args:
      load: (indices) -> float32 of the shape of the indices.
      size: Of the vector.
      packed: For 4-bit weights, whose bytes have an even and an odd place each.

    Returns:
      For each tile its first place, its size and its values.
    """
    held, begin = [], 0
    for tile in powers(size):
        if packed:
            places = begin + 2 * jnp.arange(tile // 2, dtype=jnp.int32)
            held.append((begin, tile, load(places), load(places + 1)))
        else:
            held.append((begin, tile, load(begin + jnp.arange(tile, dtype=jnp.int32))))
        begin += tile
    return held


def rows_times(weight, row, count: int, held, part: int | jax.Array = 0, *, interpret: bool):
    """Rows `row` ... `row + count` of a weight times a held vector.

    Args:
      weight: [out, in], an array or a 4-bit weight of references.
      row: The first row.
      count: How many.
      held: Of `hold`, a vector of in / parts numbers.
      part: Which of the parts of the weight's columns.
      interpret: Run on any device, slowly.

    Returns:
      float32[count].
    """
    own = pl.ds(row, count)
    width = sum(size for _, size, *_ in held)

    def columns(begin, size, unit=1):
        return pl.ds(part * (width // unit) + begin // unit, size // unit)

    if not isinstance(weight, QuantizedTensor):
        total = jnp.zeros(count, jnp.float32)
        for begin, size, x in held:
            tile = weight[own, columns(begin, size)].astype(jnp.float32)
            total += (tile * x[None]).sum(axis=1)
        return total
    loaded = []
    for begin, size, *x in held:
        packed = weight.packed[own, columns(begin, size, 2)]
        loaded.append((packed, _scales(weight, own, columns(begin, size, weight.block_size)), *x))
    total = jnp.zeros(count, jnp.float32)
    for packed, scales, even, odd in loaded:
        dots = _word_dots(packed, even, odd, weight.quant_type, interpret)
        total += (dots.reshape(*scales.shape, -1).sum(axis=2) * scales).sum(axis=1)
    return total


def _scales(weight, rows, blocks):
    """Those of some blocks of some rows."""
    absmax = weight.absmax[rows, blocks]
    if not weight.double_quantized:
        return absmax
    row = rows.start + jax.lax.broadcasted_iota(jnp.int32, absmax.shape, 0)
    block = blocks.start + jax.lax.broadcasted_iota(jnp.int32, absmax.shape, 1)
    place = row * (weight.shape[1] // weight.block_size) + block
    nested = weight.nested_absmax[place // weight.nested_block_size]
    return weight.nested_code[absmax.astype(jnp.int32)] * nested + weight.nested_offset[0]


def _word_dots(packed, even, odd, quant_type, interpret):
    """Dot products of the codes of every four bytes: uint8[r, n], float32[n] x 2 -> [r, n / 4]."""
    if interpret:
        high, low = (
            sum(
                jnp.where(half == i, float(code), 0.0)
                for i, code in enumerate(codes.CODE_BOOKS[quant_type])
            )
            for half in (packed >> 4, packed & 15)
        )
        products = high * even[None] + low * odd[None]
        return products.reshape(len(packed), -1, _WORD).sum(axis=2)
    [dots] = plgpu.elementwise_inline_asm(
        _word_dot_asm(quant_type),
        args=[
            packed,
            jnp.broadcast_to(even[None], packed.shape),
            jnp.broadcast_to(odd[None], packed.shape),
        ],
        constraints=",".join(["=&f"] * _WORD + ["r"] + ["f"] * 2 * _WORD),
        pack=_WORD,
        result_shape_dtypes=[jax.ShapeDtypeStruct(packed.shape, jnp.float32)],
    )
    # The first of each four holds the sum; the others are never set.
    dots = dots.reshape(len(packed), -1, 2, 2)
    dots = jnp.split(dots, 2, axis=-1)[0].reshape(len(packed), -1, 2)
    return jnp.split(dots, 2, axis=-1)[0].reshape(len(packed), -1)


def _word_dot_asm(quant_type):
    """PTX: $0 = sum over k of code(high of byte k of $4) * $(5 + k) + code(low) * $(9 + k)."""
    # own0 becomes the code of this lane, by the bits of its number. All calls begin like that, and
    # the compiler keeps one of them.
    lines = [
        "{",
        ".reg .b32 lane, index, code, own<16>;",
        ".reg .pred bit;",
        "mov.u32 lane, %laneid;",
    ]
    for i, code in enumerate(codes.CODE_BOOKS[quant_type]):
        lines.append(f"mov.b32 own{i}, {int(code.view('uint32')):#010x};")
    for step in (1, 2, 4, 8):
        lines += [f"and.b32 index, lane, {step};", "setp.ne.u32 bit, index, 0;"]
        lines += [f"selp.b32 own{i}, own{i + step}, own{i}, bit;" for i in range(0, 16, 2 * step)]
    for k in range(_WORD):
        for x, first_bit in ((1 + _WORD + k, 8 * k + 4), (1 + 2 * _WORD + k, 8 * k)):
            # Within half a warp a shuffle takes the low four bits of its index: no mask is needed.
            lines += [
                f"shr.u32 index, ${_WORD}, {first_bit};",
                "shfl.sync.idx.b32 code, own0, index, 0x101f, 0xffffffff;",
            ]
            if (k, first_bit) == (0, 4):
                lines.append(f"mul.f32 $0, code, ${x};")
            else:
                lines.append(f"fma.rn.f32 $0, code, ${x}, $0;")
    return "\n".join([*lines, "}"])


def is_packed(weight) -> bool:
    return isinstance(weight, QuantizedTensor)


def column_parts(width: int) -> int:
    """Into how many parts of equal width a row is cut, each of which registers hold."""
    fitting = [n for n in range(1, width) if width % n == 0 and width // n <= _LARGEST]
    return min(fitting[:8], key=lambda n: (len(powers(width // n)), n))


def hold_normed(x_ref, scale_ref, eps: float, packed: bool) -> list[tuple]:
    """As `hold`, of x normalised by its root mean square and scaled, rounded to its dtype."""
    size = x_ref.shape[0]
    held = hold(lambda places: x_ref[places].astype(jnp.float32), size, packed)
    scales = hold(lambda places: 1 + scale_ref[places].astype(jnp.float32), size, packed)
    squares = sum((x * x).sum() for _, _, *values in held for x in values)
    inverse = jax.lax.rsqrt(squares / size + eps)

    def normalise(x, scale):
        return (x * inverse * scale).astype(x_ref.dtype).astype(jnp.float32)

    return [
        (begin, tile, *map(normalise, values, factors))
        for (begin, tile, *values), (_, _, *factors) in zip(held, scales, strict=True)
    ]


def add_bias(y, bias, places):
    """y + bias[places] in the dtype of y; bias may be None."""
    return y if bias is None else y + bias[places].astype(y.dtype)
