"""A model loaded with an adapter beside its weights."""

import flax.traverse_util
import jax
import numpy as np
import pytest

import griffin_jax
from griffin_jax.checkpoints import CheckpointError
from griffin_jax.training.lora import LoRAConfig, init_adapter, merge, save_adapter
from tests.checkpoints.tiny_model import random_params

CONFIG = griffin_jax.preset("tiny").replace(vocab_size=64, num_layers=4)
LORA = LoRAConfig(rank=4, alpha=12.0, targets=("q_proj", "linear_y", "down_proj"))
TOKENS = [[5, 6, 7, 8]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model's folder, an adapter's, and the adapter."""
    folder = tmp_path_factory.mktemp("adapted")
    lm = griffin_jax.LanguageModel(CONFIG, random_params(CONFIG))
    griffin_jax.save(lm, folder / "model", format="huggingface")
    adapter = init_adapter(LORA, lm.params, jax.random.key(0))
    flat = flax.traverse_util.flatten_dict(adapter)
    key = jax.random.key(1)
    flat = {
        path: 0.1 * jax.random.normal(key, x.shape) if path[-1] == "lora_b" else x
        for path, x in flat.items()
    }
    adapter = flax.traverse_util.unflatten_dict(flat)
    save_adapter(folder / "adapter", LORA, adapter, model=CONFIG)
    return folder / "model", folder / "adapter", adapter


def logits(lm):
    return np.asarray(lm.apply(TOKENS)[0])


@pytest.mark.parametrize(
    "quantization", [None, pytest.param(griffin_jax.QuantizationConfig(), marks=pytest.mark.slow)]
)
def test_a_model_with_an_adapter_is_the_merged_model(folders, quantization):
    model, folder, adapter = folders
    options = {"quantization": quantization, "dtype": "float32"}
    adapted = griffin_jax.load(model, adapter=folder, **options)
    base = griffin_jax.load(model, **options)
    merged = griffin_jax.LanguageModel(CONFIG, merge(LORA, adapter, base.params, "float32"))
    assert np.abs(logits(base) - logits(merged)).max() > 1e-2
    np.testing.assert_allclose(logits(adapted), logits(merged), atol=2e-4)
    np.testing.assert_allclose(logits(griffin_jax.dequantize(adapted)), logits(merged), atol=2e-4)


def test_stacked_layers_take_an_adapter_for_all_of_a_place(folders):
    model, folder, _ = folders
    options = {
        "dtype": "float32",
        "adapter": folder,
        "quantization": griffin_jax.QuantizationConfig(),
    }
    stacked = griffin_jax.load(model, stack_layers=True, **options)
    apart = griffin_jax.load(model, stack_layers=False, **options)
    np.testing.assert_allclose(logits(stacked), logits(apart), atol=1e-5)


def test_an_adapter_is_merged_before_the_model_is_packed_or_saved(folders, tmp_path):
    model, folder, _ = folders
    adapted = griffin_jax.load(model, adapter=folder, dtype="float32")
    for call in (
        lambda: griffin_jax.save(adapted, tmp_path / "out"),
        lambda: griffin_jax.quantize(adapted, griffin_jax.QuantizationConfig()),
    ):
        with pytest.raises(CheckpointError, match=r"dequantize\(lm\) merges it"):
            call()
    assert not (tmp_path / "out").exists()
    griffin_jax.save(griffin_jax.dequantize(adapted), tmp_path / "out", format="huggingface")
    back = griffin_jax.load(tmp_path / "out", dtype="float32")
    np.testing.assert_allclose(logits(back), logits(adapted), atol=2e-4)


def test_a_folder_without_an_adapter_is_named(folders, tmp_path):
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        griffin_jax.load(folders[0], adapter=tmp_path)
