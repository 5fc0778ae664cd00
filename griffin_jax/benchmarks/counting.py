"""Bytes and FLOPs of a model's work, counted from its shapes."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from griffin_jax.config import GriffinConfig
from griffin_jax.models.blocks import block_of
from griffin_jax.training.flops import matmul_params, pair_flops


def weight_bytes_per_step(config: GriffinConfig, weight_bytes: int, dtype: DTypeLike) -> int:
    """Returns the bytes of parameters that one call must read: all, but of an untied embedding a few
    rows.
    """
    embedding = config.vocab_size * config.width * jnp.dtype(dtype).itemsize
    return weight_bytes if config.tie_embeddings else weight_bytes - embedding


def weight_bytes_per_chunk(config: GriffinConfig, weight_bytes: int, dtype: DTypeLike) -> int:
    """Returns the bytes of parameters that a call reads which makes no logits: neither embedding nor
    head.
    """
    embedding = config.vocab_size * config.width * jnp.dtype(dtype).itemsize
    return weight_bytes - (1 if config.tie_embeddings else 2) * embedding


def state_bytes_per_step(config: GriffinConfig, position: int, dtype: DTypeLike) -> int:
    """Returns the bytes of one row's state that a decoding step must read and write, at this position.

    Keys and values that are there are read; the recurrent blocks' part is read and written.
    """
    growing, whole = state_parts(config, position, jnp.dtype(dtype).itemsize)
    return growing + 2 * whole


def cache_bytes(config: GriffinConfig, tokens: int, itemsize: int = 2) -> int:
    """Returns the bytes that one row's state holds after so many tokens, with keys of `itemsize`
    bytes.
    """
    return sum(state_parts(config, tokens, itemsize))


def decode_flops(config: GriffinConfig, batch_size: int, position: int) -> float:
    """Returns FLOPs of one decoding step: matrix products and attention."""
    keys = _reach(config, position) + 1
    return batch_size * (2 * matmul_params(config) + _attention_flops(config, keys))


def prefill_flops(config: GriffinConfig, batch_size: int, tokens: int) -> float:
    """Returns FLOPs of reading a prompt: every product but the output head's, which no prompt
    needs.
    """
    matmuls = matmul_params(config) - config.vocab_size * config.width
    reach = _reach(config, tokens)
    # Keys that a causal window shows, summed over all queries.
    pairs = tokens * (reach + 1) - reach * (reach + 1) / 2
    return batch_size * (2 * matmuls * tokens + _attention_flops(config, pairs))


def state_parts(config: GriffinConfig, tokens: int, itemsize: int) -> tuple[int, int]:
    """Returns the bytes of one row's state after so many tokens: of blocks whose state grows, and of
    others.
    """
    filled = tokens if config.attention_window is None else min(tokens, config.attention_window)
    one, dtype = config.replace(attention_window=1), f"uint{8 * itemsize}"
    growing = whole = 0
    for kind in config.block_types:
        init = functools.partial(block_of(kind).init_state, one, 1, dtype, 1)
        state = jax.eval_shape(init)
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        growing, whole = (growing + size, whole) if state.grows else (growing, whole + size)
    return filled * growing, whole


def _reach(config, tokens):
    if config.attention_window is None:
        return tokens
    return min(tokens, config.attention_reach)


def _attention_flops(config, pairs):
    """Returns the FLOPs of scores and weighted sums, for so many pairs of query and key in each layer."""
    return pair_flops(config) * pairs
