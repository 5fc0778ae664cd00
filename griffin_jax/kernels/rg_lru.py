"""The real-gated linear recurrent unit (RG-LRU, arXiv:2402.19427, 2.4)."""

import functools

import jax
import jax.numpy as jnp

from griffin_jax.devices import per_shard, time_shards
from griffin_jax.kernels import rg_lru_mosaic_gpu, rg_lru_pallas_gpu, rg_lru_pallas_tpu
from griffin_jax.kernels.choice import choose
from griffin_jax.kernels.linear_recurrence import recur
from griffin_jax.kernels.places import At, unseen
from griffin_jax.kernels.time_shards import entering_state, shard_lengths

C = 8.0  # the paper's constant c
# The derivative of the square root is clipped at 1,000, as published; else bfloat16 gives NaN.
MAX_SQRT_GRADIENT = 1000.0


def rg_lru(
    x: jax.Array,
    gate_x: jax.Array,
    gate_a: jax.Array,
    a_param: jax.Array,
    hidden: jax.Array,
    positions: jax.Array,
    lengths: jax.Array,
    *,
    kernel: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Computes gates and recurrence, in float32.

        log a_t = -c softplus(a_param) sigmoid(gate_a_t)
        h_t     = a_t h_{t-1} + sqrt(1 - a_t^2) (sigmoid(gate_x_t) x_t)

    At position 0 the state is forgotten and the input enters unscaled (a_t = 0).

    Args:
      x: [B, T, R], the inputs.
      gate_x: [B, T, R], the input gate before its sigmoid.
      gate_a: [B, T, R], the recurrence gate before its sigmoid.
      a_param: [R].
      hidden: float32[B, R], the state before the first token.
      positions: int32[B, T], each token's position in its document.
      lengths: int32[B], how many tokens of a row are real. Padding leaves the state as it is.
      kernel: "mosaic_gpu", "pallas_gpu", "pallas_tpu" or "reference"; by default the fastest that
        serves platform, dtype and shape.

    Returns:
      h [B, T, R] in the dtype of x, and the state after each row's last real token, float32[B, R].
      Under a mesh each device runs its rows and channels, and its part of time.

    Raises:
      ValueError: the kernel that was asked for does not serve this platform or shape.
    """
    run = functools.partial(_on_one_device, kernel=kernel)
    if time_shards(x.shape[1]) > 1:
        run = functools.partial(_in_time_shards, run)
    sequence, state, row = ("batch", "time", "recurrence"), ("batch", "recurrence"), ("batch",)
    return per_shard(
        run,
        (x, gate_x, gate_a, a_param, hidden, positions, lengths),
        (sequence, sequence, sequence, ("recurrence",), state, ("batch", "time"), row),
        ((x.shape, sequence), (hidden.shape, state)),
    )


def _on_one_device(*arguments, kernel):
    shape = arguments[0].shape
    kernels = {
        "mosaic_gpu": (
            rg_lru_mosaic_gpu.rg_lru,
            rg_lru_mosaic_gpu.unsupported_reason(*arguments[:3]),
        ),
        "pallas_gpu": (rg_lru_pallas_gpu.rg_lru, rg_lru_pallas_gpu.unsupported_reason(shape)),
        "pallas_tpu": (rg_lru_pallas_tpu.rg_lru, rg_lru_pallas_tpu.unsupported_reason(shape)),
        "reference": (rg_lru_reference, None),
    }
    reasons = {name: reason for name, (_, reason) in kernels.items()}
    return kernels[choose("rg_lru", reasons, kernel)][0](*arguments)


def _in_time_shards(run, x, gate_x, gate_a, a_param, hidden, positions, lengths):
    """Runs each part of time from a state of zero first, and then from the state that enters
    it.
    """
    lengths = shard_lengths(lengths, x.shape[1])
    inputs = x, gate_x, gate_a, a_param
    _, gained = run(*inputs, jnp.zeros_like(hidden), positions, lengths)
    real = (jnp.arange(x.shape[1])[None] < lengths[:, None])[..., None]
    log_a = jnp.where(real, _log_a(gate_a, a_param), 0)
    forgets = jnp.any(real & (positions == 0)[..., None], axis=1)
    decay = jnp.where(forgets, 0.0, jnp.exp(jnp.sum(log_a, axis=1)))
    entering, last = entering_state(decay, gained, hidden)
    h, _ = run(*inputs, entering, positions, lengths)
    return h, last


def _log_a(gate_a, a_param, at=unseen):
    rate = C * jax.nn.softplus(a_param.astype(jnp.float32))[None, None]
    return at(
        "log_decay",
        -rate * at("recurrence_gate", jax.nn.sigmoid(gate_a.astype(jnp.float32))),
    )


def rg_lru_reference(x, gate_x, gate_a, a_param, hidden, positions, lengths, *, at: At = unseen):
    """Computes the definition; see `rg_lru`.

    Places that `at` is called of, all float32[B, T, R]: "recurrence_gate" and "input_gate" (behind
    their sigmoids), "log_decay" (of the gate alone), "decay" (0 where a document begins, 1 at
    padding), "input" (what is added to the decayed state) and "state".
    """
    f32 = jnp.float32
    log_a = _log_a(gate_a, a_param, at)
    inputs = x.astype(f32) * at("input_gate", jax.nn.sigmoid(gate_x.astype(f32)))
    real = (jnp.arange(x.shape[1])[None] < lengths[:, None])[..., None]
    reset = (positions == 0)[..., None]
    multiplier = jnp.where(reset, 1.0, sqrt_bounded_gradient(-jnp.expm1(2 * log_a)))
    a = at("decay", jnp.where(real, jnp.where(reset, 0.0, jnp.exp(log_a)), 1.0))
    inputs = at("input", jnp.where(real, inputs * multiplier, 0.0))
    h = recur(inputs, a, hidden, at)
    return h.astype(x.dtype), h[:, -1]


@jax.custom_vjp
def sqrt_bounded_gradient(x: jax.Array) -> jax.Array:
    """Returns a square root whose derivative is at most `MAX_SQRT_GRADIENT`."""
    return jnp.sqrt(x)


def _sqrt_forward(x):
    return jnp.sqrt(x), x


def _sqrt_backward(x, g):
    return (g * 0.5 * jax.lax.rsqrt(jnp.maximum(x, 0.25 / MAX_SQRT_GRADIENT**2)),)


sqrt_bounded_gradient.defvjp(_sqrt_forward, _sqrt_backward)
