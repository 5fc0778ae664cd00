"""4-bit weights as leaves of a parameter tree, and the way there and back."""

import functools
import math
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike

from griffin_jax.quantization import blocks, codes, scales
from griffin_jax.weight import Weight, behind

# Bits of float32 numbers: all but the sign, and those of 2**-126.
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_SMALLEST_NORMAL = np.uint32(0x00800000)


@flax.struct.dataclass
class TransposedCopy:
    """A second copy of a 4-bit weight [out, in], in the order in which a CPU decodes.

    Attributes:
      packed: uint8[groups, bytes, out]; a group is a block of a row, or a part of one.
      scales: float32[in / block_size, out].
    """

    packed: jax.Array
    scales: jax.Array


@flax.struct.dataclass
class QuantizedTensor(Weight):
    """A weight in NF4 or FP4, in the bytes bitsandbytes stores.

    The weight is taken flat, last axis fastest. Element 2 i has the high four bits of byte i and
    element 2 i + 1 the low ones, each an index into `code`; every `block_size` elements share a
    scale, and the value is code * scale, a float32 product rounded to `dtype`.

    With in = shape[-1] a multiple of `block_size`, the leaves keep the weight's leading axes, so
    that they can be sharded and concatenated along them:

        packed    uint8[..., in / 2]
        absmax    [..., in / block_size]

    and otherwise they are flat, with the last byte and the last block filled up:

        packed    uint8[ceil(size / 2)]
        absmax    [ceil(size / block_size)]

    absmax is float32, or with double quantization uint8 indices: scale i (flat) is then
    nested_code[absmax[i]] * nested_absmax[i // nested_block_size] + nested_offset.

    Attributes:
      packed: Two codes a byte.
      absmax: The scales, or their 8-bit codes.
      code: float32[16], the code book.
      nested_absmax: float32[ceil(number of scales / nested_block_size)], or None.
      nested_code: float32[256], or None.
      nested_offset: float32[], the mean of the scales, or None.
      transposed: The same weight once more, for a few rows on a CPU, or None.
      decoded: float32 or bfloat16[out, in], its values, for more rows on a CPU, or None.
      shape: The shape of the weight; a linear layer's is (out, in).
      dtype: The dtype of the weight before it was quantized: float32, float16 or bfloat16.
      quant_type: "nf4" or "fp4".
      block_size: Weights per scale, one of 32, 64, ... 4096.
      nested_block_size: Scales per second-level scale.
    """

    packed: jax.Array
    absmax: jax.Array
    code: jax.Array
    nested_absmax: jax.Array | None = None
    nested_code: jax.Array | None = None
    nested_offset: jax.Array | None = None
    transposed: TransposedCopy | None = None
    decoded: jax.Array | None = None
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False, kw_only=True)
    dtype: np.dtype = flax.struct.field(pytree_node=False, kw_only=True)
    quant_type: str = flax.struct.field(pytree_node=False, kw_only=True)
    block_size: int = flax.struct.field(pytree_node=False, kw_only=True)
    nested_block_size: int = flax.struct.field(
        pytree_node=False, kw_only=True, default=codes.NESTED_BLOCK_SIZE
    )
    read_in_stack: ClassVar[bool] = True

    @property
    def double_quantized(self) -> bool:
        return self.nested_absmax is not None

    @property
    def has_rows(self) -> bool:
        """Whether rows end with a block, so that bytes and scales keep the weight's axes."""
        return self.shape[-1] % self.block_size == 0

    @property
    def divides(self) -> bool:
        # The second level of scales counts through the whole weight.
        return not self.double_quantized

    def axes(self, axes: tuple) -> "QuantizedTensor":
        """See `Weight`; a weight that is stored flat has no rows to cut, and code books are small."""
        cut = {"packed", "absmax"} if self.has_rows else set()

        def of(path, leaf):
            name = path[0].name if len(path) == 1 else None
            return behind(axes if name in cut else (), leaf.ndim)

        return jax.tree_util.tree_map_with_path(of, self)

    def dequantize(self, dtype: DTypeLike | None = None) -> jax.Array:
        return dequantize(self, dtype)

    def divisible(self) -> "QuantizedTensor":
        if self.divides:
            return self
        return self.replace(
            absmax=decode_scales(self), nested_absmax=None, nested_code=None, nested_offset=None
        )

    def part(self) -> "QuantizedTensor":
        if not self.has_rows:
            return self
        return self.replace(shape=(self.packed.shape[-2], 2 * self.packed.shape[-1]))


def is_packed(leaf: Any) -> bool:
    """Returns whether a leaf of a parameter tree is a 4-bit weight."""
    return isinstance(leaf, QuantizedTensor)


def leaf_shapes(shape: tuple[int, ...], block_size: int):
    """Returns the shapes of `packed` and `absmax` for a weight of this shape."""
    if shape and shape[-1] % block_size == 0:
        leading, width = shape[:-1], shape[-1]
        return (*leading, width // 2), (*leading, width // block_size)
    size = math.prod(shape)
    return (-(-size // 2),), (-(-size // block_size),)


def abstract(
    shape: tuple[int, ...],
    dtype,
    quant_type: str = "nf4",
    *,
    block_size: int = 64,
    double_quant: bool = False,
) -> QuantizedTensor:
    """Returns what `quantize` gives for such a weight, with jax.ShapeDtypeStruct leaves."""
    packed, absmax = leaf_shapes(shape, block_size)
    tensor = QuantizedTensor(
        packed=jax.ShapeDtypeStruct(packed, jnp.uint8),
        absmax=jax.ShapeDtypeStruct(absmax, jnp.uint8 if double_quant else jnp.float32),
        code=jax.ShapeDtypeStruct((16,), jnp.float32),
        shape=tuple(shape),
        dtype=jnp.dtype(dtype),
        quant_type=quant_type,
        block_size=block_size,
    )
    if not double_quant:
        return tensor
    nested_blocks = -(-math.prod(absmax) // codes.NESTED_BLOCK_SIZE)
    return tensor.replace(
        nested_absmax=jax.ShapeDtypeStruct((nested_blocks,), jnp.float32),
        nested_code=jax.ShapeDtypeStruct((256,), jnp.float32),
        nested_offset=jax.ShapeDtypeStruct((), jnp.float32),
    )


def quantize(
    weight: jax.Array,
    quant_type: str = "nf4",
    *,
    block_size: int = 64,
    double_quant: bool = False,
    name: str = "weight",
) -> QuantizedTensor:
    """Quantizes a weight to the bytes bitsandbytes' CPU build makes of it, on any backend.

    The first level runs jitted on the weight's device; the second runs on the host, so call this
    outside of jit. `blocks` and `scales` say what is matched where builds of bitsandbytes differ.

    Args:
      weight: float32, float16 or bfloat16 of any shape; a linear layer's is [out, in].
      quant_type: "nf4" or "fp4".
      block_size: Weights per scale: 32, 64, 128, ... 4096.
      double_quant: Quantize the scales to 8 bits as well.
      name: What errors call the weight.

    Raises:
      ValueError: an argument is none of the above, or the weight is empty or not finite.
    """
    check_type(quant_type, block_size, name)
    dtype = jnp.result_type(weight)
    if dtype.name not in blocks.INPUT_DTYPES:
        raise ValueError(f"{name} is {dtype}; 4 bits are made of {', '.join(blocks.INPUT_DTYPES)}")
    if not np.size(weight):
        raise ValueError(f"{name} of shape {np.shape(weight)} has no elements to quantize")
    packed, absmax, finite = _first_level(weight, quant_type, block_size)
    if not finite:
        raise ValueError(f"{name} holds NaN or infinity; only finite weights can be quantized")
    tensor = QuantizedTensor(
        packed=packed,
        absmax=absmax,
        code=jnp.asarray(codes.CODE_BOOKS[quant_type]),
        shape=tuple(np.shape(weight)),
        dtype=dtype,
        quant_type=quant_type,
        block_size=block_size,
    )
    if not double_quant:
        return tensor
    quantized, nested, offset = scales.quantize_scales(np.asarray(absmax).reshape(-1))
    return tensor.replace(
        absmax=jnp.asarray(quantized.reshape(absmax.shape)),
        nested_absmax=jnp.asarray(nested),
        nested_code=jnp.asarray(codes.dynamic_map()),
        nested_offset=jnp.asarray(offset),
    )


def check_type(quant_type: str, block_size: int, name: str) -> None:
    """Raises ValueError for a type or a block size that bitsandbytes does not have."""
    if quant_type not in codes.CODE_BOOKS:
        raise ValueError(f"{name}: unknown 4-bit type {quant_type!r}; there are 'nf4' and 'fp4'")
    if block_size not in codes.BLOCK_SIZES:
        raise ValueError(f"{name}: block size {block_size!r} is none of {codes.BLOCK_SIZES}")


@functools.partial(jax.jit, static_argnames=("quant_type", "block_size"))
def _first_level(weight, quant_type, block_size):
    packed, absmax = blocks.quantize_flat(weight, quant_type, block_size)
    packed_shape, absmax_shape = leaf_shapes(weight.shape, block_size)
    finite = jnp.all(jnp.isfinite(absmax))
    return packed.reshape(packed_shape), absmax.reshape(absmax_shape), finite


def dequantize(tensor: QuantizedTensor, dtype=None) -> jax.Array:
    """Returns the values of a 4-bit weight, bit for bit those of bitsandbytes' CPU build, on any
    backend.

    Each is a float32 product, rounded to `dtype`. Where bitsandbytes' own code paths differ, these
    are matched: bfloat16 results below the smallest normal number are zero, as AVX512-BF16 makes
    them; and a row that ends within a block goes on in the next row, as it was packed. What is not
    a number has the bits of numpy's NaN.

    Outside of jit nothing is left to the backend that backends do in their own ways: the second
    level is decoded on the host, where no compiler fuses its product with its sum, and a weight
    with scales so small that subnormal float32 numbers matter is finished there, too. XLA takes
    them for zero on CPU and TPU. Inside of jit such values may be zero.

    Args:
      tensor: The weight.
      dtype: The dtype of the result; that of the original weight by default.

    Returns:
      An array of `tensor.shape`.
    """
    dtype = jnp.dtype(tensor.dtype if dtype is None else dtype)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tensor)):
        return _dequantize(tensor, dtype)
    if tensor.double_quantized:
        tensor = _with_decoded_scales(tensor)
    if _reaches_subnormal(tensor.absmax):
        return _dequantize_on_host(tensor, dtype)
    return _dequantize(tensor, dtype)


def dequantize_on_host(tensor: QuantizedTensor, dtype: DTypeLike | None = None) -> jax.Array:
    """Returns what `dequantize` does, computed by numpy, which has nothing to compile.

    Call it outside of jit; the arguments are as there.
    """
    if tensor.double_quantized:
        tensor = _with_decoded_scales(tensor)
    return _dequantize_on_host(tensor, jnp.dtype(tensor.dtype if dtype is None else dtype))


@functools.partial(jax.jit, static_argnames="dtype")
def _dequantize(tensor: QuantizedTensor, dtype) -> jax.Array:
    return _round(_products(tensor), dtype)


def _round(values: jax.Array, dtype: np.dtype) -> jax.Array:
    """Returns float32 numbers in `dtype`, told by their bits: comparisons see subnormals, or do
    not.
    """
    if dtype == jnp.bfloat16:
        bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
        subnormal = bits & _MAGNITUDE < _SMALLEST_NORMAL
        bits = jnp.where(subnormal, bits & ~_MAGNITUDE, bits)
        values = jax.lax.bitcast_convert_type(bits, jnp.float32)
    nan = np.array(np.nan, dtype).view(f"u{dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(values.astype(dtype), nan.dtype)
    bits = jnp.where(jnp.isnan(values), nan, bits)
    return jax.lax.bitcast_convert_type(bits, dtype)


def decode(tensor: QuantizedTensor, dtype) -> jax.Array:
    """Computes `dequantize` inside of jit, with no care for subnormal numbers."""
    return _products(tensor).astype(dtype)


def _products(tensor: QuantizedTensor) -> jax.Array:
    index = jnp.stack([tensor.packed >> 4, tensor.packed & 15], axis=-1)
    values = tensor.code[index].reshape(*tensor.packed.shape[:-1], -1)
    scale = decode_scales(tensor)
    room = scale.shape[-1] * tensor.block_size
    values = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, max(room - values.shape[-1], 0))])
    values = values[..., :room].reshape(*scale.shape, tensor.block_size) * scale[..., None]
    return values.reshape(-1)[: tensor.size].reshape(tensor.shape)


def decode_scales(tensor: QuantizedTensor) -> jax.Array:
    """Returns the scales in float32, shaped like `tensor.absmax`."""
    if not tensor.double_quantized:
        return tensor.absmax
    nested = jnp.repeat(tensor.nested_absmax, tensor.nested_block_size)[: tensor.absmax.size]
    product = tensor.nested_code[tensor.absmax] * nested.reshape(tensor.absmax.shape)
    # bitsandbytes rounds the product; the selection keeps XLA from fusing it with the sum.
    product = jnp.where(jnp.isnan(product), 0, product)
    return tensor.nested_offset + product


def dequantize_scales(tensor: QuantizedTensor) -> np.ndarray:
    """Returns the scales as bitsandbytes' CPU build has them, float32, shaped like
    `tensor.absmax`.
    """
    if not tensor.double_quantized:
        return np.asarray(tensor.absmax)
    host = jax.tree.map(np.asarray, tensor)
    return scales.dequantize_scales(
        host.absmax, host.nested_absmax, host.nested_code, host.nested_offset
    ).reshape(host.absmax.shape)


def _with_decoded_scales(tensor: QuantizedTensor) -> QuantizedTensor:
    """Returns the same weight with float32 scales, worked out on the host and put where they
    were.
    """
    scale = dequantize_scales(tensor)
    if isinstance(tensor.absmax, jax.Array):
        scale = jax.device_put(scale, tensor.absmax.sharding)
    return tensor.replace(absmax=scale, nested_absmax=None, nested_code=None, nested_offset=None)


def _reaches_subnormal(scale: jax.Array | np.ndarray) -> bool:
    """Returns whether some product of a code with one of these scales may be subnormal."""
    bits = jax.lax.bitcast_convert_type(scale, jnp.uint32) & _MAGNITUDE
    return bool(jnp.any((bits > 0) & (bits < np.float32(2.0**-118).view(np.uint32))))


@np.errstate(all="ignore")
def _dequantize_on_host(tensor: QuantizedTensor, dtype) -> jax.Array:
    """Does what `_dequantize` does, for a weight whose scales are float32."""
    host = jax.tree.map(np.asarray, tensor)
    packed = host.packed.reshape(-1)
    values = host.code[np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)[: tensor.size]]
    values *= np.repeat(host.absmax.reshape(-1), tensor.block_size)[: tensor.size]
    if dtype == jnp.bfloat16:
        smallest = _SMALLEST_NORMAL.view(np.float32)
        values = np.where(np.abs(values) < smallest, np.copysign(0, values), values)
    values = np.where(np.isnan(values), np.float32(np.nan), values)
    return jnp.asarray(values.astype(dtype).reshape(tensor.shape))
