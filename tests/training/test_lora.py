"""Adapters: they train, leave the base alone, merge exactly, and survive disk."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.checkpoints import CheckpointError
from griffin_jax.models import Griffin, abstract_params, init_params
from griffin_jax.quantization import FORMATS, PACKINGS
from griffin_jax.training import OptimizerConfig, train
from griffin_jax.training.lora import (
    LoRAConfig,
    adapt,
    init_adapter,
    load_adapter,
    merge,
    save_adapter,
)
from griffin_jax.training.run_log import read_metrics
from griffin_jax.weight import dequantized, is_weight
from tests.training.small_run import MODEL, make_config, make_rows

# Rows of 64 divide into blocks of 4-bit weights.
CONFIG = MODEL.replace(width=64, mlp_width=64)
LORA = LoRAConfig(rank=4, alpha=8)
BASE = jax.jit(functools.partial(init_params, CONFIG))(jax.random.key(0))


@functools.cache
def packed_base(packing="nf4"):
    """The base with every linear weight packed."""
    settings = PACKINGS[packing]

    def pack(path, leaf):
        names = [entry.key for entry in path]
        linear = names[-1] == "weight" and names[-2] in LORA.targets
        return FORMATS[settings.quant_type].pack(leaf, settings) if linear else leaf

    return jax.tree_util.tree_map_with_path(pack, BASE)


def random_adapter():
    adapter = init_adapter(LORA, BASE, jax.random.key(1))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), adapter)


@jax.jit
def logits(params):
    tokens = jnp.arange(24).reshape(2, 12) + 4
    return Griffin(CONFIG).apply({"params": params}, tokens)[0]


def test_a_fresh_adapter_adds_nothing():
    adapter = init_adapter(LORA, BASE, jax.random.key(0))
    np.testing.assert_array_equal(logits(adapt(LORA, adapter, BASE)), logits(BASE))
    # Two layers of three and four mixing projections and three of the MLP each.
    assert len(jax.tree.leaves(adapter)) == 2 * (3 + 4 + 2 * 3)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [None, "nf4", "int8"])
def test_the_merged_model_equals_base_plus_adapter(packing):
    base, adapter = BASE if packing is None else packed_base(packing), random_adapter()
    merged = merge(LORA, adapter, base)
    assert not any(map(is_weight, jax.tree.leaves(merged, is_leaf=is_weight)))
    difference = jnp.abs(logits(merged) - logits(base)).max()
    assert difference > 0.1
    np.testing.assert_allclose(logits(merged), logits(adapt(LORA, adapter, base)), atol=2e-4)
    layer = "blocks_0", "recurrent_block", "linear_x"
    weight, low_rank = (functools.reduce(dict.get, layer, tree) for tree in (base, adapter))
    weight = dequantized(weight["weight"], jnp.float32)
    np.testing.assert_allclose(
        merged["blocks_0"]["recurrent_block"]["linear_x"]["weight"],
        weight + 8 / 4 * np.asarray(low_rank["lora_b"]) @ np.asarray(low_rank["lora_a"]),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.slow
def test_an_adapter_over_8_bit_weights_has_gradients_of_the_dequantized_ones():
    base, adapter = packed_base("int8"), random_adapter()
    plain = jax.tree.map(lambda x: dequantized(x, jnp.float32), base, is_leaf=is_weight)

    def loss(adapter, base):
        return jnp.square(logits(adapt(LORA, adapter, base))).mean()

    found, expected = (jax.grad(loss)(adapter, tree) for tree in (base, plain))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * float(jnp.abs(b).max()))


def test_qlora_lowers_the_loss_and_changes_no_byte_of_the_base(tmp_path):
    base = packed_base()
    before = jax.tree.map(lambda x: np.array(x), base)
    config = make_config(
        model=CONFIG, lora=LORA, steps=30, optimizer=OptimizerConfig(1e-2, warmup_steps=2)
    )
    result = train(config, tmp_path, make_rows(), make_rows(), base=base)
    losses = [
        line["heldout_loss"]
        for line in read_metrics(tmp_path / "metrics.jsonl")
        if "heldout_loss" in line
    ]
    assert losses[-1] < losses[0] - 0.1
    jax.tree.map(np.testing.assert_array_equal, base, before)
    assert jax.tree.structure(result.params) == jax.tree.structure(random_adapter())
    again = train(config, tmp_path, make_rows(), make_rows(), base=base)
    assert again.finished
    jax.tree.map(np.testing.assert_array_equal, again.params, result.params)


def test_an_adapter_trains_over_a_given_base_only(tmp_path):
    with pytest.raises(ValueError, match="lora needs the parameters of a base model"):
        train(make_config(lora=LORA), tmp_path, make_rows())


def test_a_saved_adapter_loads_again(tmp_path):
    adapter = random_adapter()
    save_adapter(tmp_path / "adapter", LORA, adapter, base="some/model")
    config, loaded = load_adapter(tmp_path / "adapter", packed_base())
    assert dataclasses.replace(config, targets=LORA.targets) == LORA
    assert set(config.targets) == set(LORA.targets)
    jax.tree.map(np.testing.assert_array_equal, loaded, adapter)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path):
    save_adapter(tmp_path / "adapter", LORA, random_adapter())
    with pytest.raises(CheckpointError, match=r"has shape \(4, 64\), the base needs \(4, 32\)"):
        load_adapter(tmp_path / "adapter", abstract_params(CONFIG.replace(mlp_width=32)))
    with pytest.raises(CheckpointError, match=r"the base does not, tensor .*layers\.1"):
        load_adapter(tmp_path / "adapter", abstract_params(CONFIG.replace(num_layers=1)))
    with pytest.raises(CheckpointError, match=r"is no LoRA adapter: .*; .*adapter is one"):
        load_adapter(tmp_path, BASE)  # as a training run has it
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps(settings | {"use_dora": True})
    )
    with pytest.raises(
        CheckpointError, match=r"expected a plain LoRA adapter: adapter_config.json: use_dora=True"
    ):
        load_adapter(tmp_path / "adapter", BASE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "lora.rank must be a whole number of at least 1"),
        ({"targets": ("head",)}, "lora.targets are"),
    ],
)
def test_a_wrong_lora_config_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LoRAConfig(**changes)
