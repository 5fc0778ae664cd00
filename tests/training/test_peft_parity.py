"""PEFT reads saved adapters and means the same by them."""

import functools

import jax
import numpy as np
import pytest

from griffin_jax.checkpoints import load_checkpoint, save_checkpoint
from griffin_jax.config import GEMMA_2B, TINY
from griffin_jax.models import Griffin, init_params
from griffin_jax.training.lora import (
    LoRAConfig,
    adapt,
    init_adapter,
    load_adapter,
    merge,
    save_adapter,
)

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


GEMMA = GEMMA_2B.replace(
    vocab_size=128, width=64, mlp_width=96, num_layers=2, num_heads=2, head_size=32
)
TOKENS = np.arange(4, 20)[None]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A RecurrentGemma, and a Gemma with its own head, as transformers reads them."""
    models = {"griffin": TINY, "gemma": GEMMA.replace(tie_embeddings=False)}
    folder = tmp_path_factory.mktemp("bases")
    for name, config in models.items():
        base = jax.jit(functools.partial(init_params, config))(jax.random.key(0))
        save_checkpoint(folder / name, config, base, format="huggingface")
    return {name: folder / name for name in models}


def theirs(base):
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")


def logits_of(model):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS)).logits.numpy()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("griffin", {"target_modules": "all-linear"}),
        ("gemma", {"target_modules": "all-linear", "use_rslora": True}),
        ("griffin", {"target_modules": r".*\.[24]\..*proj", "init_lora_weights": "orthogonal"}),
        (
            "gemma",
            {
                "target_modules": ["up_proj", "model.layers.1.self_attn.q_proj"],
                "layers_to_transform": 0,
                "rank_pattern": {"q_proj": 2},
                "alpha_pattern": {"up_proj": 3},
                "fan_in_fan_out": True,
            },
        ),
        (
            "griffin",
            {
                "target_modules": ["linear_y", "down_proj"],
                "exclude_modules": r".*layers\.0\..*",
                "rank_pattern": {r"layers\.[12]\..*": 3},
                "use_rslora": True,
            },
        ),
    ],
)  # fmt: skip
def test_an_adapter_of_pefts_means_the_same_here(tmp_path, folders, name, settings):
    torch.manual_seed(0)
    adapted = peft.get_peft_model(theirs(folders[name]), peft.LoraConfig(r=4, **settings))
    for parameter, value in adapted.named_parameters():
        value.data += 0.05 * torch.randn_like(value) * ("lora_" in parameter)
    adapted.save_pretrained(tmp_path / "theirs")
    base = load_checkpoint(folders[name], dtype="float32")
    config, adapter = load_adapter(tmp_path / "theirs", base.params)
    merged = merge(config, adapter, base.params)
    ours, _ = jax.jit(Griffin(base.config).apply)({"params": merged}, TOKENS)
    np.testing.assert_allclose(ours, logits_of(adapted), atol=2e-4)
    assert np.abs(logits_of(theirs(folders[name])) - ours).max() > 0.1

    save_adapter(tmp_path / "ours", config, adapter, base=str(folders[name]))
    again = peft.PeftModel.from_pretrained(theirs(folders[name]), tmp_path / "ours")
    np.testing.assert_allclose(logits_of(again), ours, atol=2e-4)
