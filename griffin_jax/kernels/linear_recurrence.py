"""The diagonal linear recurrence h_t = a_t * h_{t-1} + x_t, forward and backward."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from griffin_jax.devices import per_shard, platform
from griffin_jax.kernels import linear_recurrence_pallas_gpu as pallas_gpu
from griffin_jax.kernels.choice import choose
from griffin_jax.kernels.places import At

# Time steps that one associative scan covers; the blocks follow one another. A block's temporaries
# stay small, and the program stays the same size however long the sequence.
_BLOCK = 256
# Blocks are for TPUs. On a GPU one scan over all of time takes half as long, on a CPU three quarters.
# Its temporaries are some copies of the inputs; this is how many elements an input may have, 1 GiB.
_LARGEST_WHOLE = 2**28


def linear_recurrence(
    x: jax.Array, a: jax.Array, h0: jax.Array, *, kernel: str | None = None
) -> jax.Array:
    """Runs h_t = a_t * h_{t-1} + x_t along time.

    Args:
      x: float32[B, T, R], the inputs.
      a: float32[B, T, R], the decays.
      h0: float32[B, R], the state before the first step.
      kernel: "pallas_gpu" reads and writes everything once; "associative" is parallel over time, on a
        TPU and beyond 1 GiB of inputs within blocks of it; "reference" takes step after step, which
        a CPU does in half the time and compiles in a tenth. The default is by platform and shape.

    Returns:
      float32[B, T, R], the state after every step. Its gradient is the same recurrence run
      backward, so nothing but `a` and the result is kept for it.

    Raises:
      ValueError: the kernel that was asked for does not serve this platform or shape.
    """
    portable = ("reference", "associative") if platform() == "cpu" else ("associative", "reference")
    reasons = {
        "pallas_gpu": pallas_gpu.unsupported_reason(x.shape, x.dtype),
        **dict.fromkeys(portable),
    }
    return _recurrence(choose("linear_recurrence", reasons, kernel), x, a, h0)


def recur(x: jax.Array, a: jax.Array, h0: jax.Array, at: At) -> jax.Array:
    """Computes `linear_recurrence` as part of a plain definition, whose states are a place to see
    and change.

    Where a patch changes a state, the recurrence goes on from what it was changed to: that state has
    the changed value and later ones follow from it. A patch is given the states without it.

    Args:
      x: float32[B, T, R], the inputs.
      a: float32[B, T, R], the decays.
      h0: float32[B, R], the state before the first step.
      at: Called of "state".

    Returns:
      float32[B, T, R], the state after every step.
    """
    sequence, state = ("batch", None, "recurrence"), ("batch", "recurrence")

    def run(x, a):
        # Each device has its channels and the whole of time.
        return per_shard(
            linear_recurrence, (x, a, h0), (sequence, sequence, state), ((x.shape, sequence),)
        )

    h = run(x, a)

    def settle(wanted):
        changed = wanted != h
        # A difference of nothing changes nothing, and passes a gradient on.
        return run(jnp.where(changed, wanted, x + (wanted - h)), jnp.where(changed, 0.0, a))

    return at("state", h, settle)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(kernel, x, a, h0):
    return _SCANS[kernel](x, a, h0)


def _forward(kernel, x, a, h0):
    h = _recurrence(kernel, x, a, h0)
    return h, (a, h0, h)


def _backward(kernel, residuals, dh):
    a, h0, h = residuals
    if kernel == "pallas_gpu":
        return pallas_gpu.backward(a, h0, h, dh)
    # With g_t the gradient of everything that h_t feeds: g_t = dh_t + a_{t+1} g_{t+1}.
    a_next = jnp.concatenate([a[:, 1:], jnp.zeros_like(a[:, :1])], axis=1)
    g = _SCANS[kernel](dh, a_next, jnp.zeros_like(h0), reverse=True)
    h_before = jnp.concatenate([h0[:, None], h[:, :-1]], axis=1)
    return g, g * h_before, g[:, 0] * a[:, 0]


_recurrence.defvjp(_forward, _backward)


def _combine(earlier, later):
    a_earlier, x_earlier = earlier
    a_later, x_later = later
    return a_earlier * a_later, a_later * x_earlier + x_later


def linear_recurrence_reference(
    x: jax.Array, a: jax.Array, h0: jax.Array, reverse: bool = False
) -> jax.Array:
    """Computes the definition, one step after another; see `linear_recurrence`.

    With `reverse` it starts from the last step, and x_t is added to a_t * h_{t+1}.
    """

    def step(h, inputs):
        x_t, a_t = inputs
        h = a_t * h + x_t
        return h, h

    _, h = lax.scan(step, h0, (x.swapaxes(0, 1), a.swapaxes(0, 1)), reverse=reverse)
    return h.swapaxes(0, 1)


def _associative(x, a, h0, reverse=False):
    batch, time, width = x.shape
    if time == 1:
        return a * h0[:, None] + x
    if time <= _BLOCK or (platform() != "tpu" and x.size <= _LARGEST_WHOLE):
        decay, h = lax.associative_scan(_combine, (a, x), axis=1, reverse=reverse)
        return h + decay * h0[:, None]

    def block(h_before, inputs):
        x_t, a_t = inputs
        h = _associative(x_t, a_t, h_before, reverse=reverse)
        return h[:, 0 if reverse else -1], h

    # Steps of padding (a = 1, x = 0) pass the state on, at whichever end the scan meets them.
    padding = -time % _BLOCK
    pad = ((0, 0), (0, padding), (0, 0))
    blocked = (batch, -1, _BLOCK, width)
    x = jnp.pad(x, pad).reshape(blocked).swapaxes(0, 1)
    a = jnp.pad(a, pad, constant_values=1.0).reshape(blocked).swapaxes(0, 1)
    _, h = lax.scan(block, h0, (x, a), reverse=reverse)
    return h.swapaxes(0, 1).reshape(batch, -1, width)[:, :time]


_SCANS = {
    "pallas_gpu": pallas_gpu.forward,
    "reference": linear_recurrence_reference,
    "associative": _associative,
}
