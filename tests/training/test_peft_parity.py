"""PEFT reads saved adapters and means the same by them."""

import functools

import jax
import numpy as np
import pytest

from griffin_jax.checkpoints import save_checkpoint
from griffin_jax.config import TINY
from griffin_jax.models import Griffin, init_params
from griffin_jax.training.lora import LoRAConfig, adapt, init_adapter, load_adapter, save_adapter

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

LORA = LoRAConfig(rank=4, alpha=8)


def test_peft_gives_the_logits_of_a_saved_adapter_and_its_own_loads_back(tmp_path):
    base = jax.jit(functools.partial(init_params, TINY))(jax.random.key(0))
    fresh = init_adapter(LORA, base, jax.random.key(1))
    adapter = jax.tree.map(
        lambda x: x + 0.05 * jax.random.normal(jax.random.key(2), x.shape), fresh
    )
    save_checkpoint(tmp_path / "base", TINY, base, format="huggingface")
    save_adapter(tmp_path / "adapter", LORA, adapter, base=str(tmp_path / "base"))

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="float32")
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    tokens = np.arange(4, 20)[None]
    with torch.no_grad():
        theirs = adapted(torch.from_numpy(tokens)).logits.numpy()
    ours, _ = jax.jit(Griffin(TINY).apply)({"params": adapt(LORA, adapter, base)}, tokens)
    plain, _ = jax.jit(Griffin(TINY).apply)({"params": base}, tokens)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert np.abs(plain - theirs).max() > 0.1

    adapted.save_pretrained(tmp_path / "theirs")
    config, loaded = load_adapter(tmp_path / "theirs", base)
    assert config.scale == LORA.scale
    jax.tree.map(np.testing.assert_array_equal, loaded, adapter)
