"""The loss of next-token training, with a backward pass that reads the logits once."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def cross_entropy(
    logits: jax.Array, targets: jax.Array, soft_cap: float | None
) -> tuple[jax.Array, jax.Array]:
    """Returns -ln p(target) under a softmax over logits, and the logarithm of its normalizer.

    The logits are the largest arrays of training, and passes over them are what the loss costs: two
    forward (one under a soft cap, which bounds the logits and so spares the search for the largest),
    and one backward, where the derivatives of softmax, target and cap are taken together.

    Args:
      logits: float32[..., V], before the soft cap.
      targets: int32[...].
      soft_cap: Logits become cap * tanh(logits / cap); None leaves them alone.

    Returns:
      Two arrays float32[...].
    """
    return _forward(logits, targets, soft_cap)[0]


def _forward(logits, targets, soft_cap):
    capped, _ = _cap(logits, soft_cap)
    if soft_cap is None:
        normalizer = jax.nn.logsumexp(capped, axis=-1)
    else:
        normalizer = soft_cap + jnp.log(jnp.sum(jnp.exp(capped - soft_cap), axis=-1))
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    chosen, _ = _cap(chosen, soft_cap)
    return (normalizer - chosen, normalizer), (logits, targets, normalizer)


def _backward(soft_cap, residuals, gradients):
    logits, targets, normalizer = residuals
    dloss, dnormalizer = (gradient[..., None] for gradient in gradients)
    capped, slope = _cap(logits, soft_cap)
    p = jnp.exp(capped - normalizer[..., None])
    pieces = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    is_target = pieces == targets[..., None]
    return ((dloss + dnormalizer) * p - jnp.where(is_target, dloss, 0)) * slope, None


cross_entropy.defvjp(_forward, _backward)


def _cap(logits, soft_cap):
    """Returns capped logits, and the cap's derivative."""
    if soft_cap is None:
        return logits, 1.0
    tanh = jnp.tanh(logits / soft_cap)
    return soft_cap * tanh, 1 - jnp.square(tanh)
