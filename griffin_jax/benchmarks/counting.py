"""Bytes and FLOPs of a model's work, counted from its shapes."""

import jax.numpy as jnp
from jax.typing import DTypeLike

from griffin_jax.config import ATTENTION, RECURRENT, GriffinConfig
from griffin_jax.training.flops import matmul_params


def weight_bytes_per_step(config: GriffinConfig, weight_bytes: int, dtype: DTypeLike) -> int:
    """Bytes of parameters that one call must read: all, but of an untied embedding a few rows."""
    embedding = config.vocab_size * config.width * jnp.dtype(dtype).itemsize
    return weight_bytes if config.tie_embeddings else weight_bytes - embedding


def weight_bytes_per_chunk(config: GriffinConfig, weight_bytes: int, dtype: DTypeLike) -> int:
    """Bytes of parameters that a call reads which makes no logits: neither embedding nor head."""
    embedding = config.vocab_size * config.width * jnp.dtype(dtype).itemsize
    return weight_bytes - (1 if config.tie_embeddings else 2) * embedding


def state_bytes_per_step(config: GriffinConfig, position: int, dtype: DTypeLike) -> int:
    """Bytes of one row's state that a decoding step must read and write, at this position.

    Keys and values that are there are read; the recurrent blocks' part is read and written.
    """
    attention, recurrent = _parts(config, position, jnp.dtype(dtype).itemsize)
    return attention + 2 * recurrent


def cache_bytes(config: GriffinConfig, tokens: int, itemsize: int = 2) -> int:
    """Bytes that one row's state holds after so many tokens, with keys of `itemsize` bytes."""
    return sum(_parts(config, tokens, itemsize))


def decode_flops(config: GriffinConfig, batch_size: int, position: int) -> float:
    """FLOPs of one decoding step: matrix products and attention."""
    keys = _reach(config, position) + 1
    return batch_size * (2 * matmul_params(config) + _attention_flops(config, keys))


def prefill_flops(config: GriffinConfig, batch_size: int, tokens: int) -> float:
    """FLOPs of reading a prompt: every product but the output head's, which no prompt needs."""
    matmuls = matmul_params(config) - config.vocab_size * config.width
    reach = _reach(config, tokens)
    # Keys that a causal window shows, summed over all queries.
    pairs = tokens * (reach + 1) - reach * (reach + 1) / 2
    return batch_size * (2 * matmuls * tokens + _attention_flops(config, pairs))


def _parts(config, tokens, itemsize):
    """Bytes of keys and values, and of the recurrent blocks."""
    keys = min(tokens, config.attention_window or tokens)
    attention = 2 * keys * config.num_kv_heads * config.head_size * itemsize
    recurrent = config.recurrence_width * (4 + (config.conv_width - 1) * itemsize)
    kinds = config.block_types
    return kinds.count(ATTENTION) * attention, kinds.count(RECURRENT) * recurrent


def _reach(config, tokens):
    if config.attention_window is None:
        return tokens
    return min(tokens, config.attention_window - config.window_includes_query)


def _attention_flops(config, pairs):
    """Of scores and weighted sums, for so many pairs of query and key in each layer."""
    layers = config.block_types.count(ATTENTION)
    return 4 * layers * config.num_heads * config.head_size * pairs
