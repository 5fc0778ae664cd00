"""Some rows of weights, 4-bit or plain, times one vector, which may be normalised on the way."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from griffin_jax.quantization import codes
from griffin_jax.quantization.tensor import QuantizedTensor

_WORD = 4  # bytes that are looked up and multiplied together
_LARGEST = {True: 4096, False: 2048}  # weights of a row in one tile, 4-bit or not


def is_packed(weight) -> bool:
    """Whether a weight is in 4 bits."""
    return isinstance(weight, QuantizedTensor)


def tiles(width: int, packed: bool) -> list[int]:
    """Powers of two that add up to `width`, the largest first: tiles have such sizes."""
    largest = _LARGEST[packed]
    rest = width % largest
    powers = [1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1]
    return [largest] * (width // largest) + powers


def num_warps(width: int, packed: bool) -> int:
    """Of a program whose every thread has four bytes of the smallest tile, four at most."""
    return min(4, tiles(width, packed)[-1] // (2 * 32 * _WORD if packed else 32))


def products(
    weights: Sequence,
    row: jax.Array,
    count: int,
    x_ref,
    norm: tuple | None = None,
    *,
    interpret: bool,
) -> list[jax.Array]:
    """Rows `row` ... `row + count` of each weight times a vector.

    Args:
      weights: [out, in] each, arrays or 4-bit weights of references.
      row: The first row.
      count: How many.
      x_ref: [in], the vector.
      norm: Scale, a reference to [in], and epsilon of a root mean square normalisation of the
        vector (`rms_norm`). Its factor is one number, so that it multiplies sums, not the vector.
      interpret: Run on any device, slowly.

    Returns:
      float32[count] for each weight.
    """
    packed = is_packed(weights[0])
    width, own, begin = x_ref.shape[0], pl.ds(row, count), 0
    # Sums over tiles of one size are added up number by number, and over threads at the end.
    sums: list[dict] = [{} for _ in weights]
    squares: dict = {}
    for size in tiles(width, packed):
        # What is far away is asked for first.
        loaded = [_load(weight, own, begin, size) for weight in weights]
        vector = _vector(x_ref, begin, size, packed)
        if norm is not None:
            _add(squares, size, sum(x * x for x in vector))
            scale = _vector(norm[0], begin, size, packed)
            vector = [x + x * s for x, s in zip(vector, scale, strict=True)]
        for total, weight, tile in zip(sums, weights, loaded, strict=True):
            _add(total, size, _times(weight, tile, vector, interpret))
        begin += size
    results = [sum(part.sum(axis=1) for part in total.values()) for total in sums]
    if norm is None:
        return results
    square = sum(part.sum() for part in squares.values())
    inverse = jax.lax.rsqrt(square / width + norm[1])
    return [result * inverse for result in results]


def _add(total, size, part):
    total[size] = total[size] + part if size in total else part


def _vector(ref, begin, size, packed):
    """A tile in float32; for bytes of 4-bit weights its even and its odd places."""
    tile = ref[pl.ds(begin, size)]
    if not packed:
        return [tile.astype(jnp.float32)]
    halves = jnp.split(tile.reshape(-1, 2), 2, axis=1)
    return [half.reshape(-1).astype(jnp.float32) for half in halves]


def _load(weight, rows, begin, size):
    if not is_packed(weight):
        return weight[rows, pl.ds(begin, size)]
    blocks = pl.ds(begin // weight.block_size, size // weight.block_size)
    return weight.packed[rows, pl.ds(begin // 2, size // 2)], _scales(weight, rows, blocks)


def _times(weight, tile, vector, interpret):
    """A tile of rows times a tile of the vector, summed up in part: float32[rows, ...]."""
    if not is_packed(weight):
        return tile.astype(jnp.float32) * vector[0][None]
    packed, scales = tile
    dots = _word_dots(packed, *vector, weight.quant_type, interpret)
    return dots.reshape(*scales.shape, -1).sum(axis=2) * scales


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
        dots = high * even[None] + low * odd[None]
        return dots.reshape(len(packed), -1, _WORD).sum(axis=2)
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


def add_bias(y: jax.Array, bias, rows) -> jax.Array:
    """y + bias[rows] in the dtype of y; bias may be None."""
    return y if bias is None else y + bias[rows].astype(y.dtype)
