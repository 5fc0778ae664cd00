"""Rotary position embeddings (arXiv:2104.09864)."""

import jax
import jax.numpy as jnp
import numpy as np

_STRIDE = 2048  # positions


def rotary_angles(positions: jax.Array, base: float, size: int) -> jax.Array:
    """Returns what each pair is rotated by at positions int32[B, T]: float32[B, T, size / 2].

    A plain product rounds to 24 bits, which at position 1,000,000 is an error of 0.06. Whole
    strides turn by what is left of their angle after full circles; the rest is a small product.
    """
    per_token = base ** (-2 * np.arange(size // 2) / size)
    per_stride = np.remainder(_STRIDE * per_token, 2 * np.pi)
    strides, rest = jnp.divmod(positions[..., None], _STRIDE)
    per_token, per_stride = (x.astype(np.float32)[None, None] for x in (per_token, per_stride))
    rest, strides = rest.astype(jnp.float32), strides.astype(jnp.float32)
    return rest * per_token + strides * per_stride


def rotate(x: jax.Array, positions: jax.Array, base: float, fraction: float) -> jax.Array:
    """Applies rotary position embedding to the leading `fraction` of each head.

    Args:
      x: [B, T, N, H].
      positions: int32[B, T].
      base: The longest wavelength over 2 pi.
      fraction: Share of H that is rotated, in pairs (i, i + half) of its two halves.
    """
    size = int(x.shape[-1] * fraction)
    angle = rotary_angles(positions, base, size)[:, :, None]
    sin, cos = jnp.sin(angle).astype(x.dtype), jnp.cos(angle).astype(x.dtype)
    first, second, rest = jnp.split(x, [size // 2, size], axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
