"""Products of few rows with 16-bit weights on Hopper GPUs, through Pallas' Mosaic backend.

They take the time that the weights' bytes do. Weights that share an input are read in one launch,
and so are a gate, what it gates and the gelu between them.
"""

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from griffin_jax.kernels.mosaic_gpu import backend, dense_plan
from griffin_jax.kernels.mosaic_gpu.sharing_out import added_up

_DTYPES = jnp.bfloat16, jnp.float16
_TILED_ROWS = 8  # of x in shared memory


def unsupported_reason(x: jax.Array, weights: Sequence[jax.Array]) -> str | None:
    """Returns None, or why the kernel does not serve x [..., in] under these weights."""
    if reason := backend.missing():
        return reason
    kinds = {x.dtype, *(weight.dtype for weight in weights)}
    if len(kinds) > 1 or x.dtype not in _DTYPES:
        return f"it computes in 16 bits of one kind, not in {', '.join(sorted(map(str, kinds)))}"
    features = [weight.shape[0] for weight in weights]
    return dense_plan.unsupported_reason(x.size // x.shape[-1], features, x.shape[-1])


def gated_fits(gate: jax.Array, up: jax.Array) -> str | None:
    """Returns None, or why `gated_matmul` does not serve these weights."""
    if gate.shape != up.shape:
        return f"gates of {gate.shape[0]} of {up.shape[0]} outputs (needs as many)"
    return None


def dense_matmuls(
    x: jax.Array,
    weights: tuple[jax.Array, ...],
    to_kernel: bool = False,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """Returns x @ weight.T [..., out] of x [..., in] for each weight [out, in], all in one launch.

    Args:
      x: Few rows, see `unsupported_reason`.
      weights: Arrays in the type of x.
      to_kernel: Whether the products go to another kernel, which does not add up parts of them.
      interpret: Parameters of Pallas' interpreter, or False.
    """
    products: Any = _matmuls(x, weights, to_kernel, interpret)
    return products


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _matmuls(x, weights, to_kernel, interpret):
    leading, width = x.shape[:-1], x.shape[-1]
    found = product_parts(x.reshape(-1, width), weights, interpret, to_kernel=to_kernel)
    return tuple(added_up(parts).astype(x.dtype).reshape(*leading, -1) for parts in found)


def product_parts(
    x: jax.Array, weights: Sequence[jax.Array], interpret: bool = False, **options: bool
) -> list[jax.Array]:
    """Does what `dense_matmuls` does for x [n, in], but leaves parts to be added up.

    `options` are those of `dense_plan`. It has no gradient.

    Returns:
      float32[parts, n, out] for each weight, or one part in the type of x.
    """
    found = _multiply(x, weights, (), x.dtype, interpret, **options)
    return [y if y.ndim == 3 else y[None] for y in found]


def gated_matmul(
    x: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    biases: Sequence[jax.Array],
    interpret: bool = False,
) -> jax.Array:
    """Computes gelu(gate x + bias) * (up x + bias) of x [n, in], [n, out].

    `biases` are those of both or none. It has no gradient.
    """
    biases = [bias.astype(x.dtype) for bias in biases]
    [h] = _multiply(x, (gate, up), biases, x.dtype, interpret, gated=True)
    return h


def _multiply(x, weights, biases, dtype: DTypeLike, interpret, **options):
    kernel = importlib.import_module("griffin_jax.kernels.mosaic_gpu.dense_kernel")
    rows, width = x.shape
    if rows > _TILED_ROWS:  # of fewer a kernel reads the rest as zeros
        x = jnp.pad(x, ((0, -rows % _TILED_ROWS), (0, 0)))
    features = tuple(weight.shape[0] for weight in weights)
    plan = dense_plan.dense_plan(len(x), features, width, **options)
    found = kernel.multiply(
        x, list(weights), list(biases), plan=plan, dtype=jnp.dtype(dtype), interpret=interpret
    )
    return [y[..., :rows, :] for y in found]


def _forward(x, weights, to_kernel, interpret):
    return _matmuls(x, weights, to_kernel, interpret), (x, weights)


def _backward(to_kernel, interpret, residuals, gradients):
    del to_kernel, interpret
    x, weights = residuals
    pairs = list(zip(gradients, weights, strict=True))
    options = {"preferred_element_type": jnp.float32}
    dx: Any = sum(jnp.einsum("...o,oi->...i", dy, weight, **options) for dy, weight in pairs)
    dweights = tuple(
        jnp.einsum("...o,...i->oi", dy, x, **options).astype(weight.dtype) for dy, weight in pairs
    )
    return dx.astype(x.dtype), dweights


_matmuls.defvjp(_forward, _backward)
