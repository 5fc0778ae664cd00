"""Counted arithmetic."""

import types

import jax
import pytest

from griffin_jax.config import TINY
from griffin_jax.models import Griffin, abstract_params
from griffin_jax.training.flops import matmul_params, peak_flops, train_flops_per_token


def test_forward_flops_agree_with_the_compilers_count_of_an_unbounded_transformer():
    config = TINY.replace(block_pattern=("attention",), attention_window=None, num_layers=2)
    tokens = jax.ShapeDtypeStruct((1, 64), int)
    compiled = (
        jax.jit(Griffin(config).apply).lower({"params": abstract_params(config)}, tokens).compile()
    )
    counted = compiled.cost_analysis()["flops"] / 64
    # Portable attention computes masked pairs too, twice as many as are needed.
    layers = 2 * 2 * config.num_layers * config.num_heads * config.head_size * 64
    assert counted == pytest.approx(2 * matmul_params(config) + layers, rel=0.1)


def test_attention_is_counted_by_the_keys_that_are_seen():
    base = 6 * matmul_params(TINY)
    per_key = 12 * TINY.num_heads * TINY.head_size * TINY.block_types.count("attention")
    # A window of 2 over 4 tokens shows 1, 2, 2, 2 keys.
    config = TINY.replace(attention_window=2)
    assert train_flops_per_token(config, 4) - base == pytest.approx(per_key * 7 / 4)
    unbounded = TINY.replace(attention_window=None)
    assert train_flops_per_token(unbounded, 4) - base == pytest.approx(per_key * 10 / 4)


def test_a_known_device_has_a_peak_and_another_has_none():
    device = types.SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
    assert peak_flops(device) == 989e12
    assert peak_flops(jax.devices("cpu")[0]) is None
