"""The first level: blocks of weights to 4-bit codes, in integer arithmetic alone.

bitsandbytes divides a block by its largest magnitude in float32 and compares with the midpoints
between codes. Backends differ in how they divide and in whether they keep subnormal numbers, so
the same is done here without floating point: for every block and midpoint, the largest weight that
still falls below the midpoint is worked out exactly, rounding included, and the weights' bit
patterns are compared with it as integers. CPU, GPU and TPU then make the same bytes.

Where its builds differ, bitsandbytes 0.50's CPU build is matched: `x * fl(1 / absmax)` in whole
blocks and `x / absmax` in a last, shorter one; a divisor of at least 1e-38; FP4's zeros as in
`codes.ordered_codes`. The CUDA build multiplies by an approximate inverse throughout, gives FP4 a
sign bit and rounder midpoints, and makes code 0 of all weights in an NF4 block of zeros. So it
makes other codes for zeros, and now and then for a weight right beside a midpoint.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.quantization import codes


class _Format(NamedTuple):
    """A binary floating-point format: integer view, significand bits, smallest exponent, infinity."""

    integer: type
    precision: int
    min_exponent: int
    infinity: int


_FORMATS = {
    "float32": _Format(jnp.int32, 24, -126, 0x7F800000),
    "bfloat16": _Format(jnp.int16, 8, -126, 0x7F80),
    "float16": _Format(jnp.int16, 11, -14, 0x7C00),
}
_FLOAT32 = _FORMATS["float32"]
_SMALLEST_DIVISOR = int(np.float32(1e-38).view(np.int32))

INPUT_DTYPES = tuple(_FORMATS)


def quantize_flat(weight: jax.Array, quant_type: str, block_size: int):
    """Packs a weight of any shape, as bitsandbytes orders it: flat, first element in the high bits.

    Args:
      weight: float32, float16 or bfloat16, finite.
      quant_type: "nf4" or "fp4".
      block_size: weights that share a scale.

    Returns:
      packed uint8[ceil(size / 2)] and absmax float32[ceil(size / block_size)]. A block with NaN
      or infinity has the absmax infinity.
    """
    form = _FORMATS[weight.dtype.name]
    # Integers before anything else: XLA pads bfloat16 on a CPU by way of float32, and flushes.
    flat = jax.lax.bitcast_convert_type(weight, form.integer).reshape(-1)
    whole = flat.size - flat.size % block_size
    packed, absmax = _quantize_blocks(flat[:whole].reshape(-1, block_size), form, quant_type)
    packed = packed.reshape(-1)
    if whole < flat.size:
        last = jnp.pad(flat[whole:], (0, (flat.size - whole) % 2))
        last_packed, last_absmax = _quantize_blocks(last[None], form, quant_type, divide=True)
        packed = jnp.concatenate([packed, last_packed[0]])
        absmax = jnp.concatenate([absmax, jnp.maximum(last_absmax, _SMALLEST_DIVISOR)])
    return packed, jax.lax.bitcast_convert_type(absmax, jnp.float32)


def _quantize_blocks(bits: jax.Array, form: _Format, quant_type: str, divide: bool = False):
    """Converts the bits of [n, block] weights to packed uint8[n, block / 2] and the bits of absmax
    int32[n].
    """
    largest = jnp.iinfo(form.integer).max
    absmax = jnp.max(bits & largest, axis=1).astype(jnp.int32)
    finite = absmax < form.infinity
    absmax = jnp.where(absmax == 0, 0, _join(*_split(absmax, form), _FLOAT32))
    absmax = jnp.where(finite, absmax, _FLOAT32.infinity)
    limits = _limits(absmax, quant_type, form, divide)

    keys = jnp.where(bits < 0, bits ^ largest, bits)
    order = codes.ordered_codes(quant_type)
    code = jnp.full(bits.shape, order[0], jnp.uint8)
    for index, step in enumerate(np.diff(order).astype(np.uint8)):
        code += jnp.where(keys > limits[:, index, None], step, jnp.uint8(0))
    return (code[:, ::2] << 4) | code[:, 1::2], absmax


def _limits(absmax: jax.Array, quant_type: str, form: _Format, divide: bool) -> jax.Array:
    """Returns, for each block and midpoint b, the largest key of an x whose scaled value rounds to
    <= b.

    A key orders floats like integers: the bits of a positive number, minus one minus the magnitude
    of a negative one. A scaled value rounds to at most b when it is at most b plus half a unit,
    which is `width * 2**(exponent - 24)` with the 25 bits of `width`; at the half itself, when b
    is even.
    """
    width, exponent, excludes_half, negative = _midpoint_constants(quant_type)
    divisor, divisor_exponent = _split(jnp.maximum(absmax, _SMALLEST_DIVISOR), _FLOAT32)
    inverse = _inverse(divisor, divisor_exponent)[:, None]
    divisor, divisor_exponent = divisor[:, None], divisor_exponent[:, None]

    # x * inverse <= width * 2**(23 - high), or x * 2**(24 + high) <= width * divisor.
    estimate = width.astype(np.float32) * divisor.astype(jnp.float32) * np.float32(2.0**-24)
    high = (estimate >= 2.0**24).astype(jnp.uint32)
    limit = jnp.where(high == 1, estimate * 0.5, estimate).astype(jnp.uint32)
    if divide:
        target, unit = width * divisor, jnp.uint32(1) << (24 + high)
    else:
        target, unit = width << (23 - high), inverse
    limit, rest = _correct_quotient(limit, target - excludes_half, unit)
    # One bit more where the limit fell just below the power of two that `high` promised.
    low = limit < 2**23
    more = limit * 2 + (2 * rest + excludes_half >= unit).astype(jnp.uint32)
    limit = jnp.where(low, more, limit)
    limit_exponent = exponent + divisor_exponent + high.astype(jnp.int32) - low.astype(jnp.int32)

    key = _join(limit, limit_exponent, form)
    return jnp.where(negative, -key - 2, key).astype(form.integer)


@functools.cache
def _midpoint_constants(quant_type: str):
    """Returns, for each midpoint, [1, 15]: `width`, `exponent`, whether the half is excluded, and
    its sign.

    x exceeds a negative midpoint -b when -x is at most the number before b. Zero is exceeded by
    whatever does not round to zero, which is above half of the smallest subnormal number.
    """
    points = codes.midpoints(quant_type)[None]
    negative = points < 0
    magnitudes = np.where(negative, np.nextafter(-points, np.float32(0)), points)
    mantissa, exponent = np.frexp(magnitudes)
    mantissa = np.ldexp(mantissa, 24).astype(np.uint32)
    zero = points == 0
    width = np.where(zero, 2**24, 2 * mantissa + 1).astype(np.uint32)
    exponent = np.where(zero, -150, exponent - 1).astype(np.int32)
    return width, exponent, mantissa & 1, negative


def _inverse(divisor: jax.Array, exponent: jax.Array) -> jax.Array:
    """Returns fl(1 / (divisor * 2**(exponent - 23))) in units of 2**(-24 - exponent), uint32."""
    quotient = (np.float32(2.0**49) / divisor.astype(jnp.float32)).astype(jnp.uint32)
    quotient, rest = _correct_quotient(quotient, jnp.uint32(0), divisor)
    # Two bits beyond float32's 24; the inverse of the largest divisors is subnormal and has fewer.
    spare = (2 + jnp.clip(exponent - 125, 0, 2)).astype(jnp.uint32)
    half = jnp.uint32(1) << (spare - 1)
    tail = quotient & (2 * half - 1)
    rounded = quotient >> spare
    up = (tail > half) | ((tail == half) & ((rest > 0) | (rounded % 2 == 1)))
    return (rounded + up.astype(jnp.uint32)) << (spare - 2)


def _correct_quotient(quotient: jax.Array, dividend: jax.Array, divisor: jax.Array):
    """Makes a quotient that is a few units off exact, and gives the remainder.

    All are uint32; the dividend is known modulo 2**32, which is enough since the remainder of a
    nearly right quotient is small.
    """
    rest = _signed(dividend - quotient * divisor)
    signed_divisor = _signed(divisor)
    error = jnp.floor(rest.astype(jnp.float32) / signed_divisor.astype(jnp.float32))
    error = error.astype(jnp.int32)
    rest -= error * signed_divisor
    over, under = rest >= signed_divisor, rest < 0
    error += over.astype(jnp.int32) - under.astype(jnp.int32)
    rest += jnp.where(under, signed_divisor, 0) - jnp.where(over, signed_divisor, 0)
    return quotient + _unsigned(error), _unsigned(rest)


def _split(bits: jax.Array, form: _Format):
    """Converts a positive float's bits to (m, e), value m * 2**(e - 23), m uint32 of exactly 24
    bits.
    """
    field = bits >> (form.precision - 1)
    fraction = bits & (2 ** (form.precision - 1) - 1)
    mantissa = jnp.where(field > 0, fraction | 2 ** (form.precision - 1), fraction)
    shift = jax.lax.clz(mantissa) - 8
    exponent = jnp.maximum(field, 1) - 1 + form.min_exponent - (shift - (24 - form.precision))
    return _unsigned(mantissa << shift), exponent


def _join(mantissa: jax.Array, exponent: jax.Array, form: _Format) -> jax.Array:
    """Returns the bits, int32, of the largest float of `form` not above mantissa * 2**(exponent -
    23).
    """
    below = jnp.maximum(form.min_exponent - exponent, 0)
    shift = jnp.minimum(24 - form.precision + below, 31)
    field = jnp.maximum(exponent - form.min_exponent, 0) << (form.precision - 1)
    return field + _signed(mantissa >> _unsigned(shift))


def _signed(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def _unsigned(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint32)
