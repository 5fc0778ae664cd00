"""PEFT's adapters: every plain LoRA loads, and what is none is refused by name."""

import json

import flax.traverse_util
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from griffin_jax.checkpoints import CheckpointError, peft
from griffin_jax.checkpoints.huggingface import is_linear, tensor_name
from griffin_jax.checkpoints.huggingface_config import GEMMA, RECURRENT_GEMMA
from griffin_jax.checkpoints.tree import flat_abstract_params
from griffin_jax.config import GEMMA_2B, TINY
from griffin_jax.training.lora import LoRAConfig, load_adapter, save_adapter

SMALL = {"vocab_size": 64, "width": 32, "mlp_width": 48, "num_heads": 2}
GRIFFIN = TINY.replace(**SMALL, num_layers=3, recurrence_width=32, head_size=16)
PLAIN_GEMMA = GEMMA_2B.replace(**SMALL, num_layers=2, head_size=16, recurrence_width=32)
MODELS = {RECURRENT_GEMMA: GRIFFIN, GEMMA: PLAIN_GEMMA}
ALL = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "linear_x",
    "linear_y",
    "linear_out",
]


def write(folder, settings, layers, architecture=RECURRENT_GEMMA, rank=4, more=(), dtype="float32"):
    """An adapter as PEFT saves it, with tensors for the layers at these paths; returns them."""
    base = flat_abstract_params(MODELS[architecture])
    random, tensors = np.random.default_rng(0), {}
    for layer in layers:
        outputs, inputs = base[f"{layer}/weight"].shape
        name = f"base_model.model.{tensor_name(layer, architecture)}"
        own = rank[layer] if isinstance(rank, dict) else rank
        tensors[f"{name}.lora_A.weight"] = random.normal(size=(own, inputs)).astype(dtype)
        tensors[f"{name}.lora_B.weight"] = random.normal(size=(outputs, own)).astype(dtype)
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file(tensors | dict(more), folder / "adapter_model.safetensors")
    written = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | settings
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return tensors


def load(folder, architecture=RECURRENT_GEMMA):
    return peft.read_adapter(folder, flat_abstract_params(MODELS[architecture]))


def layers_of(architecture, *ends):
    paths = [p for p in flat_abstract_params(MODELS[architecture]) if is_linear(p)]
    return [p.removesuffix("/weight") for p in paths if p.removesuffix("/weight").endswith(ends)]


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ({"target_modules": "all-linear"}, ALL),
        ({"target_modules": "All-Linear", "exclude_modules": r".*q_proj"}, ALL[1:]),
        ({"target_modules": r".*\.(o_proj|down_proj)"}, ["o_proj", "down_proj"]),
        ({"target_modules": ["o_proj", "down_proj"]}, ["o_proj", "down_proj"]),
        ({"target_modules": ["layers.0.mlp_block.down_proj", "layers.0.mlp.down_proj"]}, ["_0/mlp_block/down_proj"]),
        ({"target_modules": ["down_proj"], "exclude_modules": ["down_proj"]}, []),
        ({"target_modules": ["up_proj"], "exclude_modules": ["1.mlp_block.up_proj", "1.mlp.up_proj"]}, ["_0/mlp_block/up_proj", "_2/mlp_block/up_proj"]),
        ({"target_modules": ["up_proj"], "layers_to_transform": [1]}, ["_1/mlp_block/up_proj"]),
        ({"target_modules": ["up_proj"], "layers_to_transform": 0, "layers_pattern": "layers"}, ["_0/mlp_block/up_proj"]),
        ({"target_modules": ["up_proj"], "layers_to_transform": [], "layers_pattern": []}, ["up_proj"]),
        ({"target_modules": None}, ["down_proj"]),
        ({}, ["_0/mlp_block/down_proj", "q_proj"]),
    ],
)  # fmt: skip
def test_every_way_to_name_layers_loads(tmp_path, architecture, settings, ends):
    layers = layers_of(architecture, *ends) if ends else []
    tensors = write(tmp_path, settings, layers, architecture)
    if not layers:
        with pytest.raises(CheckpointError, match="has no tensors"):
            load(tmp_path, architecture)
        return
    rank, alpha, targets, leaves = load(tmp_path, architecture)
    assert (rank, alpha) == (4, 8)
    assert {path.rpartition("/lora_")[0] for path in leaves} == set(layers)
    for path, leaf in leaves.items():
        layer, _, part = path.rpartition("/lora_")
        name = f"base_model.model.{tensor_name(layer, architecture)}.lora_{part.upper()}.weight"
        np.testing.assert_array_equal(leaf, tensors[name])
    named = {p for p in layers_of(architecture, *targets) if p in targets or "/" in p}
    assert named == set(layers)


def added(folder, architecture=RECURRENT_GEMMA):
    """What the adapter adds to each layer that has one."""
    rank, alpha, _, leaves = load(folder, architecture)
    return {
        path.removesuffix("/lora_b"): alpha / rank * leaf @ leaves[path[:-1] + "a"]
        for path, leaf in leaves.items()
        if path.endswith("/lora_b")
    }


UP, DOWN = "blocks_1/mlp_block/up_proj", "blocks_1/mlp_block/down_proj"


@pytest.mark.parametrize(
    ("settings", "ranks", "scales"),
    [
        ({}, {UP: 4, DOWN: 4}, {UP: 8 / 4, DOWN: 8 / 4}),
        ({"use_rslora": True}, {UP: 4, DOWN: 4}, {UP: 8 / 2, DOWN: 8 / 2}),
        ({"alpha_pattern": {"up_proj": 3}}, {UP: 4, DOWN: 4}, {UP: 3 / 4, DOWN: 2}),
        ({"rank_pattern": {"up_proj": 2}}, {UP: 2, DOWN: 4}, {UP: 8 / 2, DOWN: 2}),
        ({"rank_pattern": {r"layers\.1\..*": 9}}, {UP: 9, DOWN: 9}, {UP: 8 / 9, DOWN: 8 / 9}),
        ({"rank_pattern": {"proj": 2}}, {UP: 4, DOWN: 4}, {UP: 2, DOWN: 2}),  # no whole part of a name
        (
            {"rank_pattern": {"down_proj": 9}, "alpha_pattern": {".*up_proj": 5}, "use_rslora": True},
            {UP: 4, DOWN: 9},
            {UP: 5 / 2, DOWN: 8 / 3},
        ),
        # The first pattern that fits counts.
        ({"alpha_pattern": {"up_proj": 2, "layers.1.mlp_block.up_proj": 6}}, {UP: 4, DOWN: 4}, {UP: 2 / 4, DOWN: 2}),
        ({"r": None, "lora_alpha": None}, {UP: 8, DOWN: 8}, {UP: 1, DOWN: 1}),
    ],
)  # fmt: skip
def test_each_layer_has_its_own_rank_and_scale(tmp_path, settings, ranks, scales):
    tensors = write(tmp_path / "theirs", settings, [UP, DOWN], rank=ranks)
    config, adapter = load_adapter(tmp_path / "theirs", flat_tree())
    save_adapter(tmp_path / "ours", config, adapter, model=GRIFFIN)
    for folder in (tmp_path / "theirs", tmp_path / "ours"):
        for layer, delta in added(folder).items():
            name = f"base_model.model.{tensor_name(layer, RECURRENT_GEMMA)}"
            a, b = (tensors[f"{name}.lora_{part}.weight"] for part in "AB")
            np.testing.assert_allclose(delta, scales[layer] * b @ a, rtol=1e-5, atol=1e-5)


def flat_tree(architecture=RECURRENT_GEMMA):
    return flax.traverse_util.unflatten_dict(flat_abstract_params(MODELS[architecture]), sep="/")


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "gaussian", "lora_dropout": 0.1, "fan_in_fan_out": True},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"init_lora_weights": False, "loftq_config": {"loftq_bits": 4}, "bias": None},
        {"use_dora": False, "modules_to_save": [], "target_parameters": None, "megatron_config": None},
        {"task_type": None, "runtime_config": {"ephemeral_gpu_offload": False}, "revision": "main"},
        {"a_newer_setting": None, "another": False, "a_list": [], "an_object": {}, "text": ""},
        {"ensure_weight_tying": True, "qalora_group_size": 16, "peft_version": "9.0"},
    ],
)  # fmt: skip
def test_settings_that_change_nothing_load(tmp_path, settings):
    write(tmp_path, settings, [UP])
    assert load(tmp_path)[2] == (UP,)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"peft_type": None}, "no peft_type"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights='pissa_niter_16'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq'"),
        ({"init_lora_weights": "corda"}, "init_lora_weights='corda'"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights='lora_ga'"),
        ({"init_lora_weights": "of_tomorrow"}, "init_lora_weights='of_tomorrow'"),
        ({"alora_invocation_tokens": [7, 8]}, r"alora_invocation_tokens=\[7, 8\]"),
        ({"use_dora": True}, "use_dora=True"),
        ({"use_qalora": True}, "use_qalora=True"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["rg_lru.recurrent_gate_weight"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS'"),
        ({"kasa_config": {"x": 1}}, "kasa_config"),
        ({"a_newer_setting": 1}, "a_newer_setting=1 .an unknown setting"),
        ({"target_modules": "(up_proj"}, "target_modules: '\\(up_proj' is not a regular expression"),
        ({"target_modules": 5}, "target_modules must be a list of names"),
        ({"target_modules": ".*up_proj", "layers_to_transform": [1]}, "layers_to_transform goes with"),
        ({"layers_to_transform": ["1"], "target_modules": ["up_proj"]}, "layers_to_transform must"),
        ({"rank_pattern": {"up_proj": 0}}, "rank_pattern must be whole numbers"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern: '\\(' is not a regular"),
        ({"rank_pattern": [4]}, "rank_pattern must be a JSON object"),
        ({"alpha_pattern": {"up_proj": "8"}}, "alpha_pattern must be numbers"),
        ({"r": 0}, "r must be whole numbers"),
        ({"r": "4"}, "r must be whole numbers"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be numbers"),
        ({"use_rslora": "yes"}, "use_rslora must be true or false"),
        ({"target_modules": ["down_proj"], "layers_to_transform": [1]}, "do not name model.layers.1.mlp_block.up_proj"),
        ({"target_modules": ["up_proj"]}, "lacks tensor .*layers.0.mlp_block.up_proj"),
        ({"rank_pattern": {"up_proj": 3}}, r"has shape \(4, 32\), the base needs \(3, 32\)"),
    ],
)  # fmt: skip
def test_what_changes_results_is_refused_by_name(tmp_path, settings, named):
    write(tmp_path, settings, [UP])
    with pytest.raises(CheckpointError, match=named) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "lm_head.base_layer",
            "changes the embedding or the head .tensor base_model.model.lm_head",
        ),
        ("model.embed_tokens", "changes the embedding or the head"),
        ("model.layers.7.mlp_block.up_proj.lora_A", "the base does not, tensor .*layers.7"),
        ("model.layers.1.mlp_block.up_proj.lora_magnitude_vector", "the base does not, tensor"),
    ],
)
def test_tensors_that_no_layer_of_the_base_takes_are_named(tmp_path, name, message):
    write(tmp_path, {}, [UP], more={f"base_model.model.{name}.weight": np.ones((2, 2), "f4")})
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_damaged_adapters_are_named(tmp_path):
    write(tmp_path, {}, [UP])
    weights = tmp_path / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        load(tmp_path)
    weights.write_bytes(whole[:-4] + np.float32(np.nan).tobytes())
    with pytest.raises(CheckpointError, match="is not finite"):
        load(tmp_path)
    weights.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin is not read"):
        load(tmp_path)
    (tmp_path / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors"):
        load(tmp_path)


def test_an_adapter_in_bfloat16_loads_as_float32(tmp_path):
    tensors = write(tmp_path, {}, [UP], dtype=ml_dtypes.bfloat16)
    leaves = load(tmp_path)[3]
    assert {leaf.dtype.name for leaf in leaves.values()} == {"float32"}
    a = tensors["base_model.model.model.layers.1.mlp_block.up_proj.lora_A.weight"]
    np.testing.assert_array_equal(leaves[f"{UP}/lora_a"], a.astype(np.float32))


def test_an_adapter_is_saved_under_the_names_of_the_model_that_it_is_for(tmp_path):
    config = LoRAConfig(rank=2, alpha=4.0, targets=("up_proj", "blocks_1/attention_block/q_proj"))
    adapter = {
        "blocks_0": {"mlp_block": {"up_proj": {"lora_a": np.ones((2, 32)), "lora_b": np.ones((48, 2))}}},
        "blocks_1": {"attention_block": {"q_proj": {"lora_a": np.ones((2, 32)), "lora_b": np.ones((32, 2))}}},
    }  # fmt: skip
    for architecture, mlp, mixing in (
        (RECURRENT_GEMMA, "mlp_block", "temporal_block"),
        (GEMMA, "mlp", "self_attn"),
    ):
        folder = tmp_path / architecture
        save_adapter(folder, config, adapter, model=MODELS[architecture])
        names = set(safetensors.numpy.load_file(folder / "adapter_model.safetensors"))
        assert names == {
            f"base_model.model.model.layers.{layer}.lora_{part}.weight"
            for layer in (f"0.{mlp}.up_proj", f"1.{mixing}.q_proj")
            for part in "AB"
        }
        settings = json.loads((folder / "adapter_config.json").read_text())
        assert settings["target_modules"] == ["up_proj", f"model.layers.1.{mixing}.q_proj"]
    with pytest.raises(CheckpointError, match="give model=, the base's config"):
        save_adapter(tmp_path / "unknown", config, adapter, "google/gemma-2b")
    assert not (tmp_path / "unknown").exists()
