"""A residual attention block's step in few launches; see `residual_step`."""

import jax.numpy as jnp

from griffin_jax.kernels.rotary import rotary_angles
from griffin_jax.kernels.step_gpu.attention import SLOTS, attention_step
from griffin_jax.models.residual_step import FusedStep, is_power

_MAX_CHUNKS = 128  # of a ring


def _unsupported(config, state):
    slots, rotated = state.slots(), config.rotated_size
    if config.num_kv_heads != 1 or not is_power(config.head_size, 64):
        return "attention of several heads of keys, or of heads that are no power of two"
    parts = [rotated // 2, config.head_size - rotated]
    if not is_power(parts[0], 16) or (parts[1] and not is_power(parts[1], 16)):
        return f"rotary positions of {rotated} of {config.head_size} places"
    if slots % SLOTS or not 1 <= slots // SLOTS <= _MAX_CHUNKS:
        return f"a ring of {slots} slots"
    return None


def _run(config, x, scales, layers, params, state, timeline, **options):
    del params  # linear layers are all there is
    position = timeline.positions.reshape(())
    h, keys, values = attention_step(
        x,
        scales,
        layers,
        [ring.reshape(ring.shape[1], -1) for ring in (state.keys, state.values)],
        (position, timeline.lengths.reshape(()), timeline.start.reshape(())),
        _rotation(config, position, x.dtype),
        reach=config.attention_reach,
        **options,
    )
    return h, {"keys": keys, "values": values}


def _rotation(config, position, dtype):
    """Returns the cosines and sines of a position's angles."""
    angle = rotary_angles(position.reshape(1, 1), config.rope_base, config.rotated_size).reshape(-1)
    return jnp.cos(angle).astype(dtype), jnp.sin(angle).astype(dtype)


ATTENTION_STEP = FusedStep(
    layers=("q_proj", "k_proj", "v_proj", "o_proj"),
    unsupported_reason=_unsupported,
    width=lambda config: config.head_size * config.num_heads,
    run=_run,
)
