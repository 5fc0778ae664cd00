"""The one matrix product of the linear layers."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def matmul(x: jax.Array, weight: jax.Array, out_dtype: DTypeLike | None = None) -> jax.Array:
    """x @ weight.T with float32 accumulation.

    Args:
      x: [..., in].
      weight: [out, in], cast to the dtype of x.
      out_dtype: Of the result; that of x by default.

    Returns:
      [..., out].
    """
    y = jnp.einsum(
        "...i,oi->...o",
        x,
        weight.astype(x.dtype),
        preferred_element_type=jnp.float32,
        # Float32 means float32, also where a device would round the factors by default.
        precision="highest" if x.dtype == jnp.float32 else None,
    )
    return y.astype(out_dtype or x.dtype)
