"""How many rows of text a device has memory for."""

import functools

import jax
import jax.numpy as jnp

from griffin_jax.config import GriffinConfig
from griffin_jax.inference.prefill import batch_size_for, capacity_for
from griffin_jax.models import init_state


def most_rows(config: GriffinConfig, params: dict, dtype, tokens: int, limit: int) -> int:
    """Returns how many rows' states and logits fit beside the parameters; what runs needs more
    than these.

    Args:
      config: The model's shape.
      params: Its parameters, or their shapes.
      dtype: The dtype of keys and values.
      tokens: That each row reads and writes; it matters under an unbounded window only.
      limit: Bytes that the device holds.
    """
    state = _state_bytes(config, jnp.dtype(dtype), capacity_for(config, tokens))
    row = state + config.vocab_size * jnp.dtype(jnp.float32).itemsize
    return max(limit - _nbytes(params), 0) // row


def too_many_rows(
    config: GriffinConfig, params: dict, dtype, tokens: int, limit: int, rows: int
) -> str | None:
    """Returns why so many rows cannot run together, with how many could; None if they may.

    Arguments are those of `most_rows`.
    """
    most = most_rows(config, params, dtype, tokens, limit)
    if batch_size_for(rows) <= most:
        return None
    sizes = "no row fits" if not most else f"{1 << (most.bit_length() - 1)} would fit"
    return (
        f"{rows} rows, which run as {batch_size_for(rows)}, do not fit into the device's "
        f"{limit / 1e9:.2f} GB beside weights of {_nbytes(params) / 1e9:.2f} GB: {sizes}"
    )


@functools.lru_cache(maxsize=64)  # every call that samples asks, and tracing takes 10 ms
def _state_bytes(config, dtype, capacity):
    return _nbytes(jax.eval_shape(lambda: init_state(config, 1, dtype, capacity)))


def _nbytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
