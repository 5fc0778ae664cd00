"""The diagonal linear recurrence h_t = a_t * h_{t-1} + x_t, forward and backward."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# Time steps that one associative scan covers; the blocks follow one another. A block's temporaries
# stay small, and the program stays the same size however long the sequence.
_BLOCK = 256


def linear_recurrence_reference(x: jax.Array, a: jax.Array, h0: jax.Array) -> jax.Array:
    """The definition, one step after another; see `linear_recurrence`."""

    def step(h, inputs):
        x_t, a_t = inputs
        h = a_t * h + x_t
        return h, h

    _, h = lax.scan(step, h0, (x.swapaxes(0, 1), a.swapaxes(0, 1)))
    return h.swapaxes(0, 1)


@jax.custom_vjp
def linear_recurrence(x: jax.Array, a: jax.Array, h0: jax.Array) -> jax.Array:
    """Runs h_t = a_t * h_{t-1} + x_t along time, in parallel within blocks of time.

    Args:
      x: float32[B, T, R], the inputs.
      a: float32[B, T, R], the decays.
      h0: float32[B, R], the state before the first step.

    Returns:
      float32[B, T, R], the state after every step. Its gradient is the same recurrence run
      backwards, so nothing but `a` and the result is kept for it.
    """
    return _scan(x, a, h0)


def _forward(x, a, h0):
    h = _scan(x, a, h0)
    return h, (a, h0, h)


def _backward(residuals, dh):
    a, h0, h = residuals
    # With g_t the gradient of everything that h_t feeds: g_t = dh_t + a_{t+1} g_{t+1}.
    a_next = jnp.concatenate([a[:, 1:], jnp.zeros_like(a[:, :1])], axis=1)
    g = _scan(dh, a_next, jnp.zeros_like(h0), reverse=True)
    h_before = jnp.concatenate([h0[:, None], h[:, :-1]], axis=1)
    return g, g * h_before, g[:, 0] * a[:, 0]


linear_recurrence.defvjp(_forward, _backward)


def _combine(earlier, later):
    a_earlier, x_earlier = earlier
    a_later, x_later = later
    return a_earlier * a_later, a_later * x_earlier + x_later


@functools.partial(jax.named_call, name="linear_recurrence")
def _scan(x, a, h0, reverse=False):
    batch, time, width = x.shape
    if time == 1:
        return a * h0[:, None] + x
    if time <= _BLOCK:
        decay, h = lax.associative_scan(_combine, (a, x), axis=1, reverse=reverse)
        return h + decay * h0[:, None]

    def block(h_before, inputs):
        h = _scan(*inputs, h_before, reverse=reverse)
        return h[:, 0 if reverse else -1], h

    # Steps of padding (a = 1, x = 0) pass the state on, at whichever end the scan meets them.
    padding = -time % _BLOCK
    pad = ((0, 0), (0, padding), (0, 0))
    blocked = (batch, -1, _BLOCK, width)
    x = jnp.pad(x, pad).reshape(blocked).swapaxes(0, 1)
    a = jnp.pad(a, pad, constant_values=1.0).reshape(blocked).swapaxes(0, 1)
    _, h = lax.scan(block, h0, (x, a), reverse=reverse)
    return h.swapaxes(0, 1).reshape(batch, -1, width)[:, :time]
