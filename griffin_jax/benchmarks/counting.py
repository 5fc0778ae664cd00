"""Bytes and FLOPs of a model's work, counted from its shapes."""

import jax

from griffin_jax.benchmarks.memory import tree_bytes
from griffin_jax.config import ATTENTION, RECURRENT, GriffinConfig
from griffin_jax.models import State
from griffin_jax.training.flops import matmul_params


def weight_bytes_per_step(config: GriffinConfig, params: dict) -> int:
    """Bytes of parameters that one call must read: all, but of an untied embedding a few rows."""
    total = tree_bytes(params)
    return total if config.tie_embeddings else total - tree_bytes(params["embedder"])


def state_bytes_per_step(config: GriffinConfig, state: State, position: int) -> int:
    """Bytes of a state that one decoding step must read and write, at this position.

    Keys and values that are written are read; the recurrent blocks' part is read and written.
    """
    total = 0
    for kind, block in zip(config.block_types, state.blocks, strict=True):
        if kind == ATTENTION:
            batch, slots, *rest = block.keys.shape
            row = jax.ShapeDtypeStruct((batch, min(slots, position), *rest), block.keys.dtype)
            total += 2 * tree_bytes(row)
        else:
            total += 2 * tree_bytes(block)
    return total


def decode_flops(config: GriffinConfig, batch_size: int, position: int) -> float:
    """FLOPs of one decoding step: matrix products and attention."""
    reach = _reach(config, position)
    return batch_size * (2 * matmul_params(config) + _attention_flops(config, reach + 1))


def prefill_flops(config: GriffinConfig, batch_size: int, tokens: int) -> float:
    """FLOPs of reading a prompt: every product but the output head's, which no prompt needs."""
    matmuls = matmul_params(config) - config.vocab_size * config.width
    reach = _reach(config, tokens)
    # Keys that a causal window shows, summed over all queries.
    pairs = tokens * (reach + 1) - reach * (reach + 1) / 2
    return batch_size * (2 * matmuls * tokens + _attention_flops(config, pairs))


def cache_bytes(config: GriffinConfig, tokens: int, itemsize: int = 2) -> int:
    """Bytes that one row's state holds after so many tokens, with keys of `itemsize` bytes."""
    keys = min(tokens, config.attention_window or tokens)
    attention = 2 * keys * config.num_kv_heads * config.head_size * itemsize
    recurrent = config.recurrence_width * (4 + (config.conv_width - 1) * itemsize)
    kinds = config.block_types
    return kinds.count(ATTENTION) * attention + kinds.count(RECURRENT) * recurrent


def _reach(config, tokens):
    if config.attention_window is None:
        return tokens
    return min(tokens, config.attention_window - config.window_includes_query)


def _attention_flops(config, pairs):
    """Of scores and weighted sums, for so many pairs of query and key in each layer."""
    layers = config.block_types.count(ATTENTION)
    return 4 * layers * config.num_heads * config.head_size * pairs
