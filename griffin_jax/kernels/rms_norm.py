"""Root mean square normalization (arXiv:1910.07467)."""

import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Returns x / rms(x) * (1 + scale), computed in float32, in the dtype of x.

    The gradient keeps x alone, not the float32 arrays on the way.
    """

    @jax.checkpoint
    def normalize(x, scale):
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
        scale = jax.lax.broadcast_to_rank(scale.astype(jnp.float32), x.ndim)
        return (x32 * inverse * (1 + scale)).astype(x.dtype)

    return normalize(x, scale)
