"""Products with weights that are plain arrays."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from griffin_jax.host import processor_fields
from griffin_jax.kernels.choice import choose

_X86 = ("avx512_bf16", "amx_bf16")
_ARM = ("bf16",)


def dense_matmul(
    x: jax.Array, weight: jax.Array, *, dtype: DTypeLike | None = None, kernel: str | None = None
) -> jax.Array:
    """Returns x @ weight.T, accumulated in float32.

    Args:
      x: [..., in], a floating-point type.
      weight: [out, in], used in x's dtype.
      dtype: The dtype of the result, float32 or that of x, which is the default.
      kernel: "bfloat16_cpu" multiplies bfloat16 weights as they are, by activations in bfloat16 or,
        without rounding them, in float32; "reference" leaves everything to XLA. By default the fastest
        that serves platform and types.

    Returns:
      [..., out].

    Raises:
      ValueError: the kernel that was asked for does not serve this platform or these types.
    """
    dtype = x.dtype if dtype is None else jnp.dtype(dtype)
    reasons = {"bfloat16_cpu": _bfloat16_unsupported(x.dtype, weight.dtype), "reference": None}
    if choose("dense_matmul", reasons, kernel) == "bfloat16_cpu":
        return bfloat16_matmul(x, weight, dtype)
    return dense_matmul_reference(x, weight, dtype)


def dense_matmul_reference(x: jax.Array, weight: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Computes the definition; see `dense_matmul`."""
    # Float32 means float32, also where a device would round the factors by default.
    return jnp.einsum(
        "...i,oi->...o",
        x,
        weight.astype(x.dtype),
        precision="highest" if x.dtype == jnp.float32 else None,
        preferred_element_type=None if dtype == x.dtype else dtype,
    )


def block_diagonal_matmul(
    x: jax.Array, weight: jax.Array, *, kernel: str | None = None
) -> jax.Array:
    """Returns the product of each block of x with its own weight, accumulated in float32.

    Args:
      x: [..., N, in], a floating-point type.
      weight: [N, in, out], used in x's dtype.
      kernel: "bfloat16_cpu" multiplies block by block with the processor's bfloat16 instructions;
        "reference" leaves everything to XLA. By default the fastest that serves.

    Returns:
      [..., N, out] in x's dtype.

    Raises:
      ValueError: the kernel that was asked for does not serve this platform or these shapes.
    """
    weight = weight.astype(x.dtype)
    reasons = {"bfloat16_cpu": _blocks_unsupported(x), "reference": None}
    if choose("block_diagonal_matmul", reasons, kernel) == "bfloat16_cpu":
        blocks = zip(jnp.moveaxis(x, -2, 0), jnp.swapaxes(weight, 1, 2), strict=True)
        return jnp.stack([bfloat16_matmul(*block, x.dtype) for block in blocks], axis=-2)
    precision = "highest" if x.dtype == jnp.float32 else None
    return jnp.einsum("...ni,nij->...nj", x, weight, precision=precision)


@functools.cache
def has_bfloat16() -> bool:
    """Returns whether this processor multiplies bfloat16 numbers; False where there is no
    telling.
    """
    fields = processor_fields()
    return not (
        set(_X86).isdisjoint(fields.get("flags", "").split())
        and set(_ARM).isdisjoint(fields.get("Features", "").split())
    )


def _bfloat16_unsupported(x, weight):
    if weight != jnp.bfloat16 or x not in (jnp.bfloat16, jnp.float32):
        return f"it multiplies bfloat16 weights by bfloat16 or float32, not {weight} by {x}"
    return None if has_bfloat16() else "this processor has no bfloat16 instructions"


def _blocks_unsupported(x):
    if x.dtype != jnp.bfloat16 or x.size == x.shape[-2] * x.shape[-1]:
        return f"it multiplies two rows or more of bfloat16 numbers, not {x.dtype}{[*x.shape]}"
    return None if has_bfloat16() else "this processor has no bfloat16 instructions"


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def bfloat16_matmul(x: jax.Array, weight: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Returns x @ weight.T of bfloat16 weights, on a CPU that multiplies them.

    XLA hands a product of bfloat16 matrices with a float32 result to a library (YNNPACK) that uses
    the processor's own instructions. It hands over neither a product with a bfloat16 result nor one
    with a vector: these it computes in float32, after a copy of the weight. So the result is always
    asked for in float32, and one row goes with a second one of zeros.

    A float32 row goes as the sum of three bfloat16 rows, exactly: 3 times 8 bits are the 24 of a
    float32. Reading the weight is what takes the time, so for a few rows they come for free.
    """
    rows = x.reshape(-1, x.shape[-1])
    count = len(rows)
    pieces = _split(rows) if x.dtype == jnp.float32 else [rows]
    if len(pieces) * count == 1:
        pieces.append(jnp.zeros_like(rows))
    y = jnp.einsum(
        "ri,oi->ro",
        jnp.concatenate(pieces).astype(jnp.bfloat16),
        weight,
        preferred_element_type=jnp.float32,
    )
    if x.dtype == jnp.float32:
        high, middle, low = jnp.split(y, 3)
        y = (low + middle) + high
    return y[:count].reshape(*x.shape[:-1], -1).astype(dtype)


def _split(x):
    """Returns float32 as the sum of three arrays of bfloat16 numbers, largest first."""
    # Not by casting there and back: XLA takes that for nothing.
    high = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    middle = jax.lax.reduce_precision(x - high, exponent_bits=8, mantissa_bits=7)
    return [high, middle, x - high - middle]


def _forward(x, weight, dtype):
    return bfloat16_matmul(x, weight, dtype), (x, weight)


def _backward(dtype, residuals, dy):
    x, weight = residuals
    options = {
        "precision": "highest" if x.dtype == jnp.float32 else None,
        "preferred_element_type": jnp.float32,
    }
    dy = dy.astype(x.dtype)
    dx = jnp.einsum("...o,oi->...i", dy, weight.astype(x.dtype), **options)
    dweight = jnp.einsum("...o,...i->oi", dy, x, **options)
    return dx.astype(x.dtype), dweight.astype(weight.dtype)


bfloat16_matmul.defvjp(_forward, _backward)
