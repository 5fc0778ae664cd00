"""4-bit products for one to 64 rows on GPUs, as Pallas kernels through Triton.

A warp keeps the 16 codes in the registers of its lanes, and a lane looks a code up by a shuffle: the
exact float32 code, at one shuffle, a shift and a product per weight, out of the bytes as
bitsandbytes lays them out.

One row of inputs is a matter of reading bytes: products of a block of weights are added up before
they are multiplied by the block's scale. More rows go through the tensor cores: a tile of weights
is looked up, multiplied by its scales and rounded to the inputs' dtype, as the reference does it,
and never leaves the chip.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from griffin_jax.kernels import triton
from griffin_jax.quantization import codes
from griffin_jax.quantization.tensor import QuantizedTensor, decode

MAX_ROWS = 64
_OUT_VECTOR = 4  # outputs of one program, for one row of inputs
_OUT_TILE = 32  # and for several
_BYTES_TILE = 64  # of a weight's row in one turn, for several rows of inputs
_LARGEST_PIECE = 2048  # bytes of a weight's row in one tile, for one row of inputs
_LOOKUP = 4  # bytes of one thread that are looked up together
_NESTED = ("nested_absmax", "nested_code", "nested_offset")
LEAVES = ("packed", "absmax", *_NESTED)


def unsupported_reason(rows: int, weights: Sequence[QuantizedTensor]) -> str | None:
    """Returns why products of so many rows by these weights are not supported; None if they are."""
    if reason := triton.missing():
        return reason
    if not 1 <= rows <= MAX_ROWS:
        return f"{rows} rows of inputs are more than {MAX_ROWS}"
    for weight in weights:
        out, width = weight.shape
        if out % _OUT_TILE or width % 256:
            return f"a weight of {out} x {width} (needs multiples of {_OUT_TILE} x 256)"
        if weight.packed.ndim != weight.ndim or 512 % weight.block_size:
            return f"blocks of {weight.block_size} (needs 32, 64, 128, 256 or 512)"
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def packed_matmul(
    x: jax.Array, weights: tuple[QuantizedTensor, ...], interpret: bool = False
) -> tuple[jax.Array, ...]:
    """Computes `griffin_jax.kernels.packed_matmul.packed_matmul`, all weights in one launch.

    The gradient with respect to x decodes whole weights; there is none for the weights.
    """
    leading, width = x.shape[:-1], x.shape[-1]
    x = x.reshape(-1, width)
    product = _matrix_vector if len(x) == 1 else _matrix_matrix
    return tuple(y.reshape(*leading, -1).astype(x.dtype) for y in product(x, weights, interpret))


def _forward(x, weights, interpret):
    return packed_matmul(x, weights, interpret), weights


def _backward(interpret, weights, gradients):
    del interpret

    def product(dy, weight):
        # Float32 means float32, also where a device would round the factors by default.
        precision = "highest" if dy.dtype == jnp.float32 else None
        return jnp.einsum("...o,oi->...i", dy, decode(weight, dy.dtype), precision=precision)

    return sum(map(product, gradients, weights)), None


packed_matmul.defvjp(_forward, _backward)


def _pieces(size: int) -> list[int]:
    """Returns powers of two that add up to `size`, the largest first: Triton's tiles have such
    sizes.
    """
    rest = size % _LARGEST_PIECE
    powers = [1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1]
    return [_LARGEST_PIECE] * (size // _LARGEST_PIECE) + powers


def lookup(packed, quant_type, interpret) -> Any:
    """Returns the codes of the high and of the low halves of bytes, float32 of the shape of
    `packed`.
    """
    if interpret:
        return tuple(
            sum(
                jnp.where(half == i, float(code), 0.0)
                for i, code in enumerate(codes.CODE_BOOKS[quant_type])
            )
            for half in (packed >> 4, packed & 15)
        )
    return tuple(
        triton.elementwise_inline_asm(
            _lookup_asm(quant_type, first_bit),
            args=[packed],
            constraints="=&f,=&f,=&f,=&f,r",
            pack=_LOOKUP,
            result_shape_dtypes=[jax.ShapeDtypeStruct(packed.shape, jnp.float32)],
        )[0]
        for first_bit in (4, 0)
    )


def _lookup_asm(quant_type, first_bit):
    """Returns PTX that puts the codes of four bits from `first_bit` on of the bytes of $4 into $0
    to $3.
    """
    lines = ["{", ".reg .b32 place, code;", *lane_codes_asm(quant_type)]
    for k in range(_LOOKUP):
        # Within half a warp a shuffle takes the low four bits of its index: no mask is needed.
        lines += [
            f"shr.u32 place, $4, {8 * k + first_bit};",
            "shfl.sync.idx.b32 code, own0, place, 0x101f, 0xffffffff;",
            f"mov.b32 ${k}, code;",
        ]
    return "\n".join([*lines, "}"])


def lane_codes_asm(quant_type: str) -> list[str]:
    """Returns lines of PTX that declare own0 and make it the code of this lane, by its number's low
    bits.

    All that looks codes up begins like that, and the compiler keeps one of them.
    """
    lines = [
        ".reg .b32 lane, index, own<16>;",
        ".reg .pred bit;",
        "mov.u32 lane, %laneid;",
    ]
    for i, code in enumerate(codes.CODE_BOOKS[quant_type]):
        lines.append(f"mov.b32 own{i}, {int(code.view('uint32')):#010x};")
    for step in (1, 2, 4, 8):
        lines += [f"and.b32 index, lane, {step};", "setp.ne.u32 bit, index, 0;"]
        lines += [f"selp.b32 own{i}, own{i + step}, own{i}, bit;" for i in range(0, 16, 2 * step)]
    return lines


def _operands(weights):
    """Returns the leaves that a kernel reads, those of one weight after the other, and their
    names.
    """
    names = [name for name in LEAVES if weights[0].double_quantized or name not in _NESTED]
    leaves = [
        getattr(weight, name).reshape(-1) if name == "nested_offset" else getattr(weight, name)
        for weight in weights
        for name in names
    ]
    return names, leaves


def _scales(refs, weight, rows, first, count):
    """Returns scales `first` ... `first + count` of some rows: [count] for an index, [rows,
    count].
    """
    absmax = refs["absmax"][rows, pl.ds(first, count)]
    if not weight.double_quantized:
        return absmax
    begin, size = (rows, 1) if isinstance(rows, jax.Array) else (rows.start, rows.size)
    shape = (size, count)
    row = begin + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    column = first + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return _nested(refs, weight, absmax, row.reshape(absmax.shape), column.reshape(absmax.shape))


def scales_at(refs, weight, row, column):
    """Returns the scales of the blocks at `row` and `column`, int32 arrays of one shape or that
    broadcast.
    """
    absmax = refs["absmax"][row, column]
    return _nested(refs, weight, absmax, row, column) if weight.double_quantized else absmax


def _nested(refs, weight, absmax, row, column):
    place = row * weight.absmax.shape[1] + column
    nested = refs["nested_absmax"][place // weight.nested_block_size]
    return refs["nested_code"][absmax.astype(jnp.int32)] * nested + refs["nested_offset"][0]


def _each_weight(refs, weights, names, outputs, body):
    """Runs `body(leaves, weight, out_ref, first row)` for the weight that this program is for."""
    inputs, out_refs = refs[: -len(weights)], refs[-len(weights) :]
    program, begin = pl.program_id(0), 0
    for index, weight in enumerate(weights):
        leaves = dict(zip(names, inputs[index * len(names) :], strict=False))
        count = weight.shape[0] // outputs
        pl.when((program >= begin) & (program < begin + count))(
            functools.partial(body, leaves, weight, out_refs[index], (program - begin) * outputs)
        )
        begin += count


def _vector_kernel(even_ref, odd_ref, *refs, weights, names, interpret):
    def body(leaves, weight, out_ref, row):
        total = jnp.zeros(_OUT_VECTOR, jnp.float32)
        begin = 0
        for size in _pieces(weight.shape[1] // 2):
            total += piece(leaves, weight, row, begin, size)
            begin += size
        out_ref[pl.ds(row, _OUT_VECTOR)] = total

    def piece(leaves, weight, row, begin, size):
        blocks = 2 * size // weight.block_size
        first = 2 * begin // weight.block_size
        columns = pl.ds(begin, size)
        rows = [row + r for r in range(_OUT_VECTOR)]
        loaded = [
            (leaves["packed"][r, columns], _scales(leaves, weight, r, first, blocks)) for r in rows
        ]
        even = even_ref[columns].astype(jnp.float32)
        odd = odd_ref[columns].astype(jnp.float32)
        row_of = jax.lax.broadcasted_iota(jnp.int32, (_OUT_VECTOR, blocks), 0)
        sums = jnp.zeros((_OUT_VECTOR, blocks), jnp.float32)
        for r, (packed, scale) in enumerate(loaded):
            high, low = lookup(packed, weight.quant_type, interpret)
            products = (high * even + low * odd).reshape(blocks, -1).sum(axis=1) * scale
            sums += jnp.where(row_of == r, products[None], 0.0)
        return sums.sum(axis=1)

    _each_weight(refs, weights, names, _OUT_VECTOR, body)


@functools.partial(jax.jit, static_argnames="interpret")
def _matrix_vector(x, weights, interpret):
    smallest = _pieces(x.shape[1] // 2)[-1]
    return _call(
        _vector_kernel,
        (x[0, ::2], x[0, 1::2]),
        weights,
        outputs=_OUT_VECTOR,
        out_shapes=[weight.shape[:1] for weight in weights],
        num_warps=min(4, smallest // (32 * _LOOKUP)),
        num_stages=1,
        interpret=interpret,
    )


def _tile_kernel(even_ref, odd_ref, *refs, weights, names, interpret):
    rows = even_ref.shape[0]
    # Float32 means float32 on the tensor cores, too.
    precision = jax.lax.Precision.HIGHEST if even_ref.dtype == jnp.float32 else None

    def body(leaves, weight, out_ref, row):
        own = pl.ds(row, _OUT_TILE)
        blocks = max(1, 2 * _BYTES_TILE // weight.block_size)

        def turn(i, sums):
            columns = pl.ds(i * _BYTES_TILE, _BYTES_TILE)
            first = 2 * _BYTES_TILE * i // weight.block_size
            scale = _scales(leaves, weight, own, first, blocks)[:, :, None]
            tile = (_OUT_TILE, blocks, _BYTES_TILE // blocks)
            halves = lookup(leaves["packed"][own, columns], weight.quant_type, interpret)
            for x_ref, half in zip((even_ref, odd_ref), halves, strict=True):
                x = x_ref[:, columns]
                values = (half.reshape(tile) * scale).reshape(_OUT_TILE, -1).astype(x.dtype)
                sums += triton.dot(x, values, trans_b=True, precision=precision)
            return sums

        turns = weight.shape[1] // (2 * _BYTES_TILE)
        zeros = jnp.zeros((rows, _OUT_TILE), jnp.float32)
        out_ref[:, own] = jax.lax.fori_loop(0, turns, turn, zeros)

    _each_weight(refs, weights, names, _OUT_TILE, body)


@functools.partial(jax.jit, static_argnames="interpret")
def _matrix_matrix(x, weights, interpret):
    count = len(x)
    rows = max(16, 1 << (count - 1).bit_length())  # what the tensor cores take
    x = jnp.pad(x, ((0, rows - count), (0, 0)))
    products = _call(
        _tile_kernel,
        (x[:, ::2], x[:, 1::2]),
        weights,
        outputs=_OUT_TILE,
        out_shapes=[(rows, weight.shape[0]) for weight in weights],
        num_warps=4,
        num_stages=3,
        interpret=interpret,
    )
    return [product[:count] for product in products]


def _call(kernel, halves, weights, outputs, out_shapes, num_warps, num_stages, interpret):
    names, leaves = _operands(weights)
    return pl.pallas_call(
        functools.partial(kernel, weights=weights, names=names, interpret=interpret),
        grid=(sum(weight.shape[0] for weight in weights) // outputs,),
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in out_shapes],
        compiler_params=triton.CompilerParams(num_warps=num_warps, num_stages=num_stages),
        name=kernel.__name__.strip("_"),
        interpret=interpret,
    )(*halves, *leaves)
