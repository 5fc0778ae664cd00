"""8-bit weights as bitsandbytes stores them (LLM.int8, arXiv:2208.07339): a row of the table of formats.

A weight [out, in] is rounded to float16, and each row is multiplied in float32 by 127 over its largest
magnitude and rounded to integers, half to even. In a checkpoint there are, beside a weight LAYER.weight,

    LAYER.weight         int8[out, in]
    LAYER.SCB            float32[out], the largest magnitudes
    LAYER.weight_format  uint8[], 0: rows lie in order

Its value is integer * SCB / 127: two float32 products, the second with the float32 number next to
1 / 127. The paper also rounds activations to 8 bits, but for outliers; that is no matter of weights,
and is not done here. See `formats.Format` for what the functions are.
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike

from griffin_jax.errors import CheckpointError
from griffin_jax.quantization.config import INT8, QuantizationConfig
from griffin_jax.weight import Weight, behind

TYPE = INT8
MARK = "SCB"
INVERSE = np.float32(7.874015718698502e-3)  # bitsandbytes' 1 / 127
_LARGEST = 127
_LARGEST_HALF = 65504
_DTYPES = ("float32", "float16", "bfloat16")
_SUFFIXES = (".SCB", ".weight_format")
_ORDERS = ("row", "col32", "col_turing", "col_ampere")
# Scales below this may give values that are subnormal, which XLA takes for zero on CPU and TPU.
_SMALL = np.float32(2.0**-118)


@flax.struct.dataclass
class Int8Weight(Weight):
    """A weight in 8 bits, with a scale for each of its rows.

    Attributes:
      rows: int8[..., out, in].
      absmax: float32[..., out], the largest magnitude of each row, which 127 stands for.
    """

    rows: jax.Array
    absmax: jax.Array

    quant_type: ClassVar[str] = TYPE
    read_in_stack: ClassVar[bool] = True
    dtype: ClassVar[np.dtype] = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one layer's weight, be there a stack of them or not."""
        return tuple(self.rows.shape[-2:])

    @property
    def scale(self) -> jax.Array:
        """The factors of products with `rows`, float32[..., out]."""
        return self.scale_of(...)

    def scale_of(self, rows: Any) -> jax.Array:
        """Returns the part of `scale` at an index, reading no more: the arrays may be references."""
        return self.absmax[rows] * INVERSE

    def axes(self, axes: tuple) -> "Int8Weight":
        return self.replace(
            rows=behind(axes, self.rows.ndim), absmax=behind(axes[:-1], self.absmax.ndim)
        )

    def dequantize(self, dtype: DTypeLike | None = None) -> jax.Array:
        """Returns the values, bit for bit those of bitsandbytes, rounded to `dtype`; float32 by default.

        Inside of jit, values that are subnormal in float32 may be zero.
        """
        dtype = self.dtype if dtype is None else jnp.dtype(dtype)
        if any(isinstance(leaf, Tracer) for leaf in (self.rows, self.absmax)):
            return _values(self.rows, self.absmax, jnp.float32).astype(dtype)
        small = np.abs(np.asarray(self.absmax))
        if np.any((small > 0) & (small < _SMALL)):
            rows, absmax = map(np.asarray, (self.rows, self.absmax))
            return jnp.asarray(_values(rows, absmax, np.float32).astype(dtype))
        return _dequantize(self.rows, self.absmax, dtype)


def _values(rows, absmax, dtype):
    return rows.astype(dtype) * absmax[..., None] * INVERSE


@functools.partial(jax.jit, static_argnames="dtype")
def _dequantize(rows, absmax, dtype):
    return _values(rows, absmax, jnp.float32).astype(dtype)


def pack(
    weight: jax.Array | np.ndarray,
    settings: QuantizationConfig | None = None,
    *,
    block_size: int = 64,
    name: str = "weight",
) -> Int8Weight:
    """Packs a weight to the integers and scales that bitsandbytes' CPU build makes, on any backend."""
    del settings  # there is one way
    if block_size != 64:
        raise ValueError(
            f"{name}: 8-bit weights have one scale a row, so a block_size of {block_size} has no "
            "meaning for them; leave it at 64"
        )
    dtype, shape = jnp.result_type(weight), np.shape(weight)
    if dtype.name not in _DTYPES:
        raise ValueError(f"{name} is {dtype}; 8 bits are made of {', '.join(_DTYPES)}")
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} has shape {shape}; 8 bits are made of a matrix with elements")
    absmax = np.asarray(_absmax(weight))
    if not np.isfinite(absmax).all():
        if not jnp.isfinite(weight).all():
            raise ValueError(f"{name} holds NaN or infinity; only finite weights can be quantized")
        raise ValueError(
            f"{name} goes beyond {_LARGEST_HALF:,}, the largest float16 number, which 8 bits are made by "
            "way of"
        )
    # On the host: devices divide in their own ways. bitsandbytes multiplies by the inverse.
    with np.errstate(divide="ignore"):
        factor = (np.float32(1) / absmax) * np.float32(_LARGEST)
    return Int8Weight(rows=_round(weight, factor), absmax=jnp.asarray(absmax))


@jax.jit
def _absmax(weight):
    return jnp.max(jnp.abs(_as_halves(weight)), axis=1)


@jax.jit
def _round(weight, factor):
    scaled = _as_halves(weight) * factor[:, None]
    scaled = jnp.where(jnp.isinf(factor)[:, None], 0, scaled)  # a row of zeros
    return jnp.round(scaled).astype(jnp.int8)


def _as_halves(weight):
    """Rounds to the numbers that float16 has, in float32 arithmetic alone."""
    if weight.dtype == jnp.float16:
        return weight.astype(jnp.float32)
    values = weight.astype(jnp.float32)
    normal = jax.lax.reduce_precision(values, exponent_bits=5, mantissa_bits=10)
    subnormal = jnp.round(values * 2.0**24) * 2.0**-24  # as float16's subnormal numbers lie
    return jnp.where(jnp.abs(values) < 2.0**-14, subnormal, normal)


def abstract(
    shape: tuple[int, ...],
    dtype: DTypeLike = None,
    settings: QuantizationConfig | None = None,
    *,
    block_size: int = 64,
) -> Int8Weight:
    del dtype, settings, block_size
    return Int8Weight(
        rows=jax.ShapeDtypeStruct(tuple(shape), jnp.int8),
        absmax=jax.ShapeDtypeStruct(tuple(shape[:-1]), jnp.float32),
    )


def noise(key: jax.Array, weight: Int8Weight) -> Int8Weight:
    """Draws random bytes under equal scales."""
    deviation = np.sqrt((256**2 - 1) / 12)  # of the bytes
    absmax = np.float32(weight.shape[-1] ** -0.5 * _LARGEST / deviation)
    return Int8Weight(
        rows=_bytes(key, weight.rows.shape), absmax=jnp.full(weight.absmax.shape, absmax)
    )


@functools.partial(jax.jit, static_argnames="shape")
def _bytes(key, shape):
    return jax.lax.bitcast_convert_type(jax.random.bits(key, shape, jnp.uint8), jnp.int8)


def settings_of(weight: Int8Weight) -> QuantizationConfig:
    del weight
    return QuantizationConfig(load_in_8bit=True)


def metadata(weight: Int8Weight) -> dict[str, Any]:
    return {"quant_type": weight.quant_type}


def from_metadata(shape: tuple[int, ...], metadata: Mapping[str, Any]) -> Int8Weight:
    if unknown := set(metadata) - {"quant_type"}:
        raise TypeError(f"{TYPE} weights have no {', '.join(sorted(unknown))}")
    return abstract(shape)


def weight_of(name: str) -> str | None:
    layer = next((name.removesuffix(end) for end in _SUFFIXES if name.endswith(end)), None)
    return None if layer is None else f"{layer}.weight"


def to_arrays(weight: Int8Weight, name: str, storage: str = "uint8") -> dict[str, np.ndarray]:
    del storage  # is of 4 bits
    scales, form = (name.removesuffix(".weight") + end for end in _SUFFIXES)
    return {
        name: np.asarray(weight.rows),
        scales: np.asarray(weight.absmax),
        form: np.zeros((), np.uint8),
    }


def from_arrays(arrays: Mapping[str, np.ndarray], name: str) -> Int8Weight:
    scales, form = (name.removesuffix(".weight") + end for end in _SUFFIXES)
    if scales not in arrays:
        raise CheckpointError(f"{scales} is missing, the scales of the 8-bit weight {name}")
    if name not in arrays:
        raise CheckpointError(f"{name} is missing, the 8-bit weight of {scales}")
    rows, absmax = np.asarray(arrays[name]), np.asarray(arrays[scales])
    if rows.dtype != np.int8 or rows.ndim != 2:
        raise CheckpointError(
            f"{name} is {rows.dtype}{list(rows.shape)}; beside {scales}, int8[out, in] is expected"
        )
    if absmax.dtype != np.float32 or absmax.shape != rows.shape[:1]:
        raise CheckpointError(
            f"{scales} is {absmax.dtype}{list(absmax.shape)}; float32[{len(rows)}], a scale for each row "
            f"of {name}, is expected"
        )
    if not np.isfinite(absmax).all():
        raise CheckpointError(f"{scales} holds NaN or infinity")
    number = np.asarray(arrays.get(form, 0)).reshape(-1).tolist()
    if number != [0]:
        known = dict(enumerate(_ORDERS)).get(number[0], "unknown") if number else "empty"
        raise CheckpointError(
            f"{form} is {number} ({known}); only 0 is read, rows one after another, which is all that "
            "bitsandbytes writes now"
        )
    return Int8Weight(rows=rows, absmax=absmax)
