"""The one matrix product of the linear layers."""

import jax
import jax.numpy as jnp


def matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x @ weight.T, accumulated in float32.

    Args:
      x: [..., in].
      weight: [out, in], cast to the dtype of x.

    Returns:
      [..., out] in the dtype of x.
    """
    # Float32 means float32, also where a device would round the factors by default.
    precision = "highest" if x.dtype == jnp.float32 else None
    return jnp.einsum("...i,oi->...o", x, weight.astype(x.dtype), precision=precision)
