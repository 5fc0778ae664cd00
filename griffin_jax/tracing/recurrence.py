"""The memory of a linear recurrence: its effective attention, its spectrum, and how far it reaches.

A recurrence h_t = a_t h_{t-1} + x_t is attention without a softmax: h_t is the sum of x_s over s <= t,
each weighed by the product of the decays behind it. Decays and inputs are those of a trace, at
"blocks.*.rg_lru.decay" and "blocks.*.rg_lru.input".
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_F32 = jnp.float32


def effective_attention(decay: jax.Array, channels: Sequence[int] | None = None) -> jax.Array:
    """Returns the weights by which the state of each channel is a sum of inputs.

    Args:
      decay: float32[B, T, R], the decay of each token and channel.
      channels: Numbers of channels, to compute no others; each takes T * T numbers.

    Returns:
      float32[B, C, T, T]. Entry [t, s] is a_{s+1} ... a_t for s <= t, and 0 beyond: with inputs x,
      h_t is the sum over s of [t, s] x_s, and [t, 0] a_0 times the state before the first token.

    Raises:
      ValueError: `decay` is not [B, T, R], or a channel is none of its own.
    """
    decay = jnp.moveaxis(_of_channels(decay, channels), 1, 0)
    time, batch, width = decay.shape

    def row(weights, step):
        weights = _next(weights, step)
        return weights, weights

    start = jnp.zeros((batch, width, time), _F32)
    return jnp.moveaxis(lax.scan(row, start, (decay, jnp.arange(time)))[1], 0, 2)


def head_attention(
    decay: jax.Array, inputs: jax.Array, num_heads: int, *, share: bool = True
) -> jax.Array:
    """Returns how much of the state each token's input is, over the channels of each head.

    Args:
      decay: float32[B, T, R].
      inputs: float32[B, T, R].
      num_heads: Heads, of R / N channels each: the diagonal blocks of the gates.
      share: Divide each row by its sum, as a softmax does.

    Returns:
      float32[B, N, T, T]: the root mean square over channels of what token s has in the state of
      token t.

    Raises:
      ValueError: `decay` and `inputs` are not of one shape [B, T, R], or the heads do not divide R.
    """
    _check(decay, inputs)
    batch, time, width = decay.shape
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads must divide the {width} channels, got {num_heads}")

    def row(weights, step):
        weights = _next(weights, step)
        parts = jnp.square(weights * jnp.moveaxis(inputs, 1, 2))
        parts = parts.reshape(batch, num_heads, -1, time)
        return weights, jnp.sqrt(parts.mean(axis=2))

    start = jnp.zeros((batch, width, time), _F32)
    _, rows = lax.scan(row, start, (jnp.moveaxis(decay, 1, 0), jnp.arange(time)))
    found = jnp.moveaxis(rows, 0, 2)
    total = found.sum(axis=-1, keepdims=True)
    return found / jnp.maximum(total, jnp.finfo(_F32).tiny) if share else found


def _next(weights, step):
    """Returns the weights [B, R, T] of the next token: those before decay, and its own input enters
    whole.
    """
    decay, t = step
    return (decay[:, :, None] * weights).at[:, :, t].set(1.0)


def memory_length(log_decay: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
    """Returns in how many tokens the state of a channel falls to 1 / e, at the decays that a text
    gave it.

    Args:
      log_decay: float32[B, T, R], at "blocks.*.rg_lru.log_decay": logarithms of the gate's decays,
        in which the beginning of a document is no end of memory.
      lengths: int32[B], how many tokens of a row are real; all by default.

    Returns:
      float32[R], -1 over the mean of the logarithm; times ln 2 it is a half-life.
    """
    time = log_decay.shape[1]
    real = jnp.ones(log_decay.shape[:2], bool)
    if lengths is not None:
        real = jnp.arange(time)[None] < jnp.asarray(lengths)[:, None]
    total = jnp.where(real[..., None], log_decay, 0).sum(axis=(0, 1))
    return -real.sum() / jnp.minimum(total, -jnp.finfo(_F32).tiny)


def decay_spectrum(
    log_decays: dict[int, jax.Array], lengths: jax.Array | None = None
) -> dict[int, np.ndarray]:
    """Returns the decays of each layer's channels, the most forgetful first.

    Args:
      log_decays: By layer, as `Trace.layers("blocks.*.rg_lru.log_decay")` returns them.
      lengths: int32[B], as for `memory_length`.

    Returns:
      By layer float32[R]: the decay a token that, repeated, forgets as the text's decays did.
    """
    return {
        layer: np.sort(np.exp(-1 / np.asarray(memory_length(log_decay, lengths))))
        for layer, log_decay in log_decays.items()
    }


def kept(decay: jax.Array, token: int) -> jax.Array:
    """Returns what is left of the state behind a token, as later tokens come.

    Args:
      decay: float32[B, T, R].
      token: Its number in the row, 0 to T - 1.

    Returns:
      float32[B, T - token, R], from 1 at the token itself.

    Raises:
      ValueError: there is no such token.
    """
    _check_token(decay, token)
    return jnp.cumprod(jnp.asarray(decay)[:, token:].at[:, 0].set(1.0), axis=1)


def share_of_state(decay: jax.Array, inputs: jax.Array, token: int) -> jax.Array:
    """Returns how much of each later state is what one token put there.

    Args:
      decay: float32[B, T, R].
      inputs: float32[B, T, R].
      token: Its number in the row, 0 to T - 1.

    Returns:
      float32[B, T - token]: the norm over channels of the token's part, over that of all parts, each
      part for itself: 1 where nothing but it is there, 0 where it is forgotten.

    Raises:
      ValueError: `decay` and `inputs` are not of one shape [B, T, R], or there is no such token.
    """
    _check(decay, inputs)
    mine = jnp.square(kept(decay, token) * inputs[:, token, None]).sum(axis=-1)
    # The squares of all parts follow a recurrence of their own.
    _, squares = lax.scan(
        lambda total, step: (jnp.square(step[0]) * total + jnp.square(step[1]),) * 2,
        jnp.zeros_like(decay[:, 0]),
        (jnp.moveaxis(decay, 1, 0), jnp.moveaxis(inputs, 1, 0)),
    )
    every = jnp.moveaxis(squares, 0, 1)[:, token:].sum(axis=-1)
    return jnp.sqrt(mine / jnp.maximum(every, jnp.finfo(_F32).tiny))


def _of_channels(decay, channels):
    if decay.ndim != 3:
        raise ValueError(f"decay must be [batch, time, channels], got {list(decay.shape)}")
    if channels is None:
        return decay
    width = decay.shape[-1]
    if not all(0 <= channel < width for channel in channels):
        raise ValueError(f"channels must be numbers of 0 to {width - 1}, got {list(channels)}")
    return decay[..., np.asarray(channels, int)]


def _check(decay, inputs):
    if decay.ndim != 3 or decay.shape != inputs.shape:
        raise ValueError(
            "decay and inputs must be of one shape [batch, time, channels], got "
            f"{list(decay.shape)} and {list(inputs.shape)}"
        )


def _check_token(decay, token):
    if not 0 <= token < decay.shape[1]:
        raise ValueError(f"token must be a number of 0 to {decay.shape[1] - 1}, got {token}")
