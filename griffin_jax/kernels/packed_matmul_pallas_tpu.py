"""Products with 4-bit weights as a Pallas kernel for TPUs (written for v5e).

The kernel reads the bytes of `QuantizedTensor` as they are, transposed to [in / 2, out], which is
free where `to_device_layout` has put them into memory that way. A tile of 32 x 128 bytes is then
one register of 8 x 128 words, and a column of it the 64 weights of one block of one output: one
scale. So each column has a table of 8 words, each the pair of codes (i, i + 8) times the scale in
bfloat16, and a weight is one gather along the sublanes by its three low bits and one shift by its
highest. What comes out is exactly bfloat16(code * scale), in an order of the inputs that is made up
for by exchanging lanes of x. No weight is ever whole in memory: a tile is decoded where it is
multiplied, once for at most `_MAX_ROWS` rows of x.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.layout import Format, Layout
from jax.experimental.pallas import tpu as pltpu

from griffin_jax.layer_of import LayerOf
from griffin_jax.quantization.tensor import QuantizedTensor, decode, decode_scales
from griffin_jax.weight import no_gradient

_UNIT = 64  # inputs in one register of words, which share a scale
_GROUP = 8 * _UNIT  # inputs decoded at a time: their scales fill a register
_LANES = 128
_COLUMNS = 1024  # outputs of a tile
_INPUTS = 2048  # inputs of a tile, at most
_MAX_ROWS = 512  # of x that share a decoded tile
_ROW_TILE = 16  # of bfloat16
_VMEM = 48 * 2**20

Weight = QuantizedTensor | LayerOf


def unsupported_reason(x: jax.Array, weight: Weight) -> str | None:
    """Returns why this product is not supported; None if it is."""
    tensor = weight.stack if isinstance(weight, LayerOf) else weight
    if x.dtype != jnp.bfloat16:
        return f"it takes bfloat16, not {x.dtype}"
    features, inputs = tensor.shape
    if inputs % (_LANES if inputs < _GROUP else _GROUP):
        return f"rows of {inputs} are no multiple of {_GROUP}, nor a short one of {_LANES}"
    if tensor.block_size < _UNIT or inputs % tensor.block_size:
        return f"blocks of {tensor.block_size} are not {_UNIT} or more that end with a row"
    if features % _LANES:
        return f"{features} outputs are not a multiple of {_LANES}"
    return None


def packed_matmul(x: jax.Array, weight: Weight, *, interpret: bool = False) -> jax.Array:
    """Returns x @ weight.T for bfloat16 x [..., in], accumulated in float32; see
    `unsupported_reason`.
    """
    rows = x.reshape(-1, x.shape[-1])
    padded = jnp.pad(rows, ((0, -rows.shape[0] % _ROW_TILE), (0, 0)))
    product: Any = _product(padded, weight, interpret)
    return product[: rows.shape[0]].reshape(*x.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x, weight, interpret):
    return _call(x, weight, interpret)


def _forward_rule(x, weight, interpret):
    return _call(x, weight, interpret), weight


def _backward_rule(interpret, weight, gradient):
    tensor = weight.layer()
    dx = jnp.einsum("bo,oi->bi", gradient, decode(tensor, gradient.dtype))
    # 4-bit weights are not trained; what is differentiated is what they multiply.
    return dx, no_gradient(weight)


_product.defvjp(_forward_rule, _backward_rule)


@functools.partial(jax.jit, static_argnums=2)  # so that layers of one shape are traced once
def _call(x, weight, interpret):
    if isinstance(weight, LayerOf):
        tensor, layer = weight.stack, weight.index
    else:
        tensor, layer = jax.tree.map(lambda leaf: leaf[None], weight), jnp.int32(0)
    rows, inputs = x.shape
    features = tensor.shape[0]
    scales, scale_layer = tensor.absmax, layer
    if tensor.double_quantized or tensor.block_size != _UNIT:
        one: Any = weight.layer()
        scales = jnp.repeat(decode_scales(one), one.block_size // _UNIT, axis=1)[None]
        scale_layer = jnp.int32(0)

    tile_rows = min(rows, _MAX_ROWS)
    tile_inputs = max(t for t in range(_UNIT, _INPUTS + 1, _UNIT) if inputs % t == 0 and _whole(t))
    columns = max(t for t in range(_LANES, _COLUMNS + 1, _LANES) if features % t == 0)
    return pl.pallas_call(
        functools.partial(_kernel, pack=_pack_in_jax if interpret else _pack_on_tpu),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(pl.cdiv(rows, tile_rows), features // columns, inputs // tile_inputs),
            in_specs=[
                pl.BlockSpec((tile_rows, tile_inputs), lambda m, n, k, *_: (m, k)),
                pl.BlockSpec(
                    (None, tile_inputs // 2, columns), lambda m, n, k, at, *_: (at[0], k, n)
                ),
                pl.BlockSpec(
                    (None, inputs // _UNIT, columns), lambda m, n, k, _, at, __: (at[0], 0, n)
                ),
            ],
            out_specs=pl.BlockSpec((tile_rows, columns), lambda m, n, k, *_: (m, n)),
            scratch_shapes=[pltpu.VMEM((tile_rows, columns), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((rows, features), x.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=_VMEM
        ),
        name="packed_matmul",
        interpret=interpret,
    )(
        layer[None],
        scale_layer[None],
        _in_main_memory(tensor.code, interpret),
        x,
        _in_main_memory(jnp.swapaxes(tensor.packed, 1, 2), interpret),
        _in_main_memory(jnp.swapaxes(scales, 1, 2), interpret),
    )


def _in_main_memory(stack, interpret):
    """Keeps XLA from fetching a whole stack ahead of a kernel that reads one layer of it."""
    return stack if interpret else pltpu.with_memory_space_constraint(stack, pltpu.HBM)


def _whole(inputs):
    """Returns whether a tile of so many inputs is decoded in whole groups, or is one short
    group.
    """
    return inputs % _GROUP == 0 or inputs < _GROUP


def _kernel(layer_ref, _, code_ref, x_ref, packed_ref, scale_ref, out_ref, sum_ref, *, pack):
    k = pl.program_id(2)
    inputs, columns = 2 * packed_ref.shape[0], packed_ref.shape[1]
    group = min(inputs, _GROUP)
    groups = inputs // group
    codes = _codes(code_ref, layer_ref[0])

    @pl.when(k == 0)
    def _():
        sum_ref[...] = jnp.zeros_like(sum_ref)

    def add(i, carry):
        x = _exchange_lanes(x_ref[:, _span(i, group)])
        for begin in range(0, columns, _LANES):
            lanes = pl.ds(begin, _LANES)
            scales = scale_ref[_span(k * groups + i, group // _UNIT), lanes]
            bytes_ = packed_ref[_span(i, group // 2), lanes]
            words = pltpu.bitcast(bytes_, jnp.int32)
            units = [
                _decode(words[8 * u : 8 * u + 8], codes, scales[u : u + 1], pack)
                for u in range(group // _UNIT)
            ]
            weight = jnp.concatenate(units, axis=0)
            sum_ref[:, lanes] += jnp.dot(x, weight, preferred_element_type=jnp.float32)
        return carry

    lax.fori_loop(0, groups, add, 0)

    @pl.when(k == pl.num_programs(2) - 1)
    def _():
        out_ref[...] = sum_ref[...].astype(out_ref.dtype)


def _span(index, size):
    return pl.ds(pl.multiple_of(index * size, size), size)


def _codes(code_ref, layer):
    """Returns the code book as two tables [8, 128] that are the same in every lane."""
    row = lax.broadcasted_iota(jnp.int32, (8, _LANES), 0)
    low = high = jnp.zeros((8, _LANES), jnp.float32)
    for i in range(8):
        low = jnp.where(row == i, code_ref[layer, i], low)
        high = jnp.where(row == i, code_ref[layer, 8 + i], high)
    return low, high


def _decode(words, codes, scale, pack):
    """Decodes int32[8, 128] with scale [1, 128] to bfloat16[64, 128], byte pairs in the order of
    nibbles.

    Row 8 n + s is input 8 s + n of the unit: within a byte the high bits come first.
    """
    low, high = codes
    table = pack(low * scale, high * scale)
    values = []
    for nibble in (1, 0, 3, 2, 5, 4, 7, 6):
        bit = 4 * nibble
        index = _shift_right(words, bit) & 7
        half = (_shift_right(words, bit - 1) if bit else words << 1) & 16
        values.append(lax.shift_right_logical(_take_along(table, index, axis=0), half))
    pairs = [jnp.concatenate(values[i : i + 2], axis=0) for i in range(0, 8, 2)]
    return jnp.concatenate(
        [pltpu.bitcast(pair.astype(jnp.int16), jnp.bfloat16) for pair in pairs], axis=0
    )


def _shift_right(words, bits):
    return lax.shift_right_logical(words, jnp.full_like(words, bits)) if bits else words


def _exchange_lanes(x):
    """Returns bfloat16 [M, K] with the inputs of each unit in the order of `_decode`'s rows."""
    words = pltpu.bitcast(x, jnp.int32)
    parts = []
    for begin in range(0, x.shape[1], _LANES):
        part = words[:, begin : begin + _LANES]
        lane = lax.broadcasted_iota(jnp.int32, part.shape, 1)
        source = (lane & -_UNIT) | ((lane & 7) << 3) | ((lane >> 3) & 7)
        parts.append(_take_along(part, source, axis=1))
    return pltpu.bitcast(jnp.concatenate(parts, axis=1), jnp.bfloat16)


def _take_along(values, index, axis):
    other = 1 - axis
    dimensions = lax.GatherDimensionNumbers(
        offset_dims=(),
        collapsed_slice_dims=(axis,),
        start_index_map=(axis,),
        operand_batching_dims=(other,),
        start_indices_batching_dims=(other,),
    )
    mode = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return lax.gather(values, index[..., None], dimensions, (1, 1), mode=mode)


def _pack_on_tpu(low, high):
    """Returns float32 pairs as bfloat16 in the halves of int32 words."""
    words = pltpu.pack_elementwise([low, high], packed_dtype=jnp.bfloat16)
    return lax.bitcast_convert_type(words, jnp.int32)


def _pack_in_jax(low, high):
    """Does what `_pack_on_tpu` does, which the interpreter does not know."""

    def bits(x):
        # XLA leaves out a conversion to bfloat16 and back on a GPU.
        rounded = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        return lax.bitcast_convert_type(rounded, jnp.int32)

    return _shift_right(bits(low), 16) | bits(high)


def to_device_layout(tensor: QuantizedTensor, *, consume: bool = False) -> QuantizedTensor:
    """Returns the same weight, or stack of weights, with its arrays in memory as the kernel reads
    them.

    Values, shapes and shardings stay, and so do the bytes that `save` writes: only the order of the
    axes in memory changes. Without it the kernel's result is the same, but XLA transposes every
    weight first.

    Args:
      tensor: The weight; its arrays may be abstract, with shardings.
      consume: Free the arrays that it had.
    """

    def put(x):
        if x.ndim < 2:
            return x
        order = (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2)
        form = Format(Layout(order), x.sharding)
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=form)
        return jax.device_put(x, form, donate=consume)

    return tensor.replace(packed=put(tensor.packed), absmax=put(tensor.absmax))
