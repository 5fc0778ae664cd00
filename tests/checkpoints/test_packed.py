"""4-bit weights in checkpoints."""

import dataclasses
import json
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import griffin_jax
from griffin_jax.checkpoints import load_checkpoint, open_checkpoint, save_checkpoint, save_leaves
from griffin_jax.checkpoints.shards import INDEX_FILE, WEIGHTS_FILE
from griffin_jax.quantization import QuantizationConfig, QuantizedTensor, dequantize, quantize
from tests.checkpoints.tiny_model import (
    CONFIG,
    assert_same_tree,
    edit_json,
    logits,
    one_line_error,
    random_params,
)

FORMATS = ("huggingface", "orbax")
# Rows of linear_out, 96 wide, end within a block.
KINDS = {
    "nf4": {"quant_type": "nf4"},
    "nf4, twice": {"quant_type": "nf4", "double_quant": True},
    "fp4, long blocks": {"quant_type": "fp4", "block_size": 256},
}
LINEAR = r"(linear_\w+|_proj)/weight$"
UP = "model.layers.1.mlp_block.up_proj.weight"


def pack(params, pattern=LINEAR, **kwargs):
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return flax.traverse_util.unflatten_dict(
        {
            path: quantize(leaf, **kwargs) if re.search(pattern, path) else leaf
            for path, leaf in flat.items()
        },
        sep="/",
    )


def unpack(params):
    def is_packed(leaf):
        return isinstance(leaf, QuantizedTensor)

    return jax.tree.map(lambda x: dequantize(x) if is_packed(x) else x, params, is_leaf=is_packed)


@pytest.fixture(scope="module", params=KINDS)
def packed(request):
    return pack(random_params(CONFIG, jnp.bfloat16), **KINDS[request.param])


@pytest.fixture(scope="module")
def nf4():
    return pack(random_params(CONFIG), **KINDS["nf4, twice"])


@pytest.mark.parametrize("format", FORMATS)
def test_saving_and_loading_changes_nothing(tmp_path, packed, format):
    save_checkpoint(tmp_path / "model", CONFIG, packed, format=format, max_shard_size=40_000)
    loaded = load_checkpoint(tmp_path / "model")
    assert_same_tree(loaded.params, packed)
    leaf = packed["blocks_0"]["mlp_block"]["up_proj"]["weight"]
    settings = QuantizationConfig.from_dict(loaded.quantization)
    assert settings.bnb_4bit_quant_type == leaf.quant_type
    assert settings.bnb_4bit_use_double_quant == leaf.double_quantized
    assert settings.llm_int8_skip_modules is None


@pytest.mark.parametrize("format", FORMATS)
def test_only_what_is_not_packed_takes_the_wanted_dtype(tmp_path, nf4, format):
    save_checkpoint(tmp_path / "model", CONFIG, nf4, format=format)
    params = load_checkpoint(tmp_path / "model", dtype="bfloat16").params
    assert params["embedder"]["embedding"].dtype == jnp.bfloat16
    assert_same_tree(
        params["blocks_1"]["mlp_block"]["up_proj"]["weight"],
        nf4["blocks_1"]["mlp_block"]["up_proj"]["weight"],
    )


@pytest.mark.parametrize("format", FORMATS)
def test_every_array_of_a_packed_weight_has_a_sharding(tmp_path, nf4, format):
    save_checkpoint(tmp_path / "model", CONFIG, nf4, format=format)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    seen = set()

    def shardings(path, leaf):
        def of(field, _):
            name = "/".join(filter(None, (path, jax.tree_util.keystr(field, simple=True))))
            seen.add(name)
            spec = ("x",) if name.endswith("/packed") else ()
            return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

        return jax.tree_util.tree_map_with_path(of, leaf)

    params = load_checkpoint(tmp_path / "model", shardings=shardings).params
    assert_same_tree(params, nf4)
    weight = params["blocks_1"]["mlp_block"]["up_proj"]["weight"]
    assert weight.packed.sharding.spec == jax.sharding.PartitionSpec("x")
    assert {
        "blocks_1/mlp_block/up_proj/weight/packed",
        "blocks_1/mlp_block/up_proj/weight/nested_offset",
    } < seen


@pytest.mark.parametrize("format", FORMATS)
def test_given_settings_are_kept(tmp_path, nf4, format):
    settings = dataclasses.replace(
        QuantizationConfig(), bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float16"
    ).to_dict()
    save_checkpoint(tmp_path / "model", CONFIG, nf4, format=format, quantization=settings)
    assert load_checkpoint(tmp_path / "model").quantization == settings


@pytest.mark.parametrize("format", FORMATS)
def test_settings_of_a_model_that_is_not_packed_are_dropped(tmp_path, format):
    settings = QuantizationConfig().to_dict()
    params = random_params(CONFIG)
    save_checkpoint(tmp_path / "model", CONFIG, params, format=format, quantization=settings)
    assert load_checkpoint(tmp_path / "model").quantization is None


def test_layers_left_whole_are_skipped_in_the_settings(tmp_path):
    params = pack(random_params(CONFIG), r"(up|down)_proj/weight$")
    save_checkpoint(tmp_path / "model", CONFIG, params, format="huggingface")
    loaded = load_checkpoint(tmp_path / "model")
    assert_same_tree(loaded.params, params)
    settings = QuantizationConfig.from_dict(loaded.quantization)
    assert settings.skips("lm_head")
    assert settings.skips("model.layers.0.mlp_block.gate_proj")
    assert not settings.skips("model.layers.0.mlp_block.up_proj")


@pytest.mark.parametrize("storage", ["uint8", "bfloat16", "float32"])
def test_bytes_in_a_wider_storage_dtype_come_back(tmp_path, nf4, storage):
    settings = QuantizationConfig(bnb_4bit_quant_storage=storage).to_dict()
    save_checkpoint(tmp_path / "model", CONFIG, nf4, format="huggingface", quantization=settings)
    stored = safetensors.safe_open(tmp_path / "model" / WEIGHTS_FILE, "np").get_slice(UP)
    assert stored.get_dtype() == {"uint8": "U8", "bfloat16": "BF16", "float32": "F32"}[storage]
    assert_same_tree(load_checkpoint(tmp_path / "model").params, nf4)


@pytest.mark.parametrize("format", FORMATS)
def test_leaves_stream_on_the_host_from_one_checkpoint_into_another(tmp_path, nf4, format):
    save_checkpoint(tmp_path / "model", CONFIG, nf4, format=format)
    leaves = dict(open_checkpoint(tmp_path / "model").leaves())
    assert all(isinstance(x, np.ndarray | np.generic) for x in jax.tree.leaves(leaves))
    save_leaves(tmp_path / "folder", CONFIG, leaves.items())
    assert_same_tree(load_checkpoint(tmp_path / "folder").params, nf4)
    tree = flax.traverse_util.unflatten_dict(leaves, sep="/")
    save_checkpoint(tmp_path / "ours", CONFIG, tree)
    assert_same_tree(load_checkpoint(tmp_path / "ours").params, nf4)


@pytest.fixture
def folder(tmp_path, nf4):
    save_checkpoint(tmp_path / "model", CONFIG, nf4, format="huggingface")
    return tmp_path / "model"


def edit_tensors(folder, change):
    tensors = safetensors.numpy.load_file(folder / WEIGHTS_FILE)
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / WEIGHTS_FILE)


@pytest.mark.parametrize(
    "part", ["absmax", "quant_map", "nested_absmax", "quant_state.bitsandbytes__nf4"]
)
def test_a_missing_part_of_a_packed_weight_is_named(folder, part):
    edit_tensors(folder, lambda tensors: tensors.pop(f"{UP}.{part}"))
    message = one_line_error(folder)
    assert UP in message
    assert part.removesuffix("nf4") in message


def test_packed_bytes_without_anything_else_are_half_quantized(folder):
    def strip(tensors):
        for name in [name for name in tensors if name.startswith(f"{UP}.")]:
            del tensors[name]

    edit_tensors(folder, strip)
    message = one_line_error(folder)
    assert f"{UP} holds packed bytes but has no quant_state" in message
    assert "half-quantized" in message


def test_a_whole_weight_that_should_be_packed_is_half_quantized(folder):
    def unpack_one(tensors):
        for name in [name for name in tensors if name.startswith(UP)]:
            del tensors[name]
        tensors[UP] = np.zeros((CONFIG.mlp_width, CONFIG.width), np.float32)

    edit_tensors(folder, unpack_one)
    message = one_line_error(folder)
    assert f"tensor {UP} is not quantized" in message
    assert "half-quantized" in message
    edit_json(
        folder / "config.json",
        quantization_config=QuantizationConfig(llm_int8_skip_modules=(UP[:-7],)).to_dict(),
    )
    load_checkpoint(folder)


def test_a_quant_state_of_another_shape_is_named(folder):
    down = UP.replace("up_proj", "down_proj")

    def swap(tensors):
        for name in [name for name in tensors if name.startswith(down)]:
            other = name.replace(down, UP)
            tensors[name], tensors[other] = tensors[other], tensors[name]

    edit_tensors(folder, swap)
    message = one_line_error(folder)
    assert "has shape" in message
    assert "mlp_block" in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "gptq"}, "quant_method='gptq' (only 'bitsandbytes' is)"),
        ({"load_in_8bit": True, "load_in_4bit": True}, "both true: weights are packed in one way"),
    ],
)
def test_another_quantization_is_refused(folder, settings, words):
    edit_json(folder / "config.json", quantization_config=settings)
    assert words in one_line_error(folder)


def test_a_damaged_packing_in_our_own_format_is_named(tmp_path, nf4):
    save_checkpoint(tmp_path / "model", CONFIG, nf4)
    config_file = tmp_path / "model" / "griffin_config.json"
    packed = json.loads(config_file.read_text())["packed"]
    path = "blocks_1/mlp_block/up_proj/weight"
    edit_json(config_file, packed=packed | {path: packed[path] | {"block_size": 32}})
    assert f"{path}/absmax has shape" in one_line_error(tmp_path / "model")
    edit_json(config_file, packed=packed | {path: packed[path] | {"double_quant": False}})
    assert f"{path}/nested_absmax" in one_line_error(tmp_path / "model")
    edit_json(config_file, packed=packed | {path: {"quant_type": "nf4"}})
    assert "griffin_config.json: packed" in one_line_error(tmp_path / "model")


def bitsandbytes_config(quant_type, double_quant):
    import torch
    import transformers

    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=torch.float32,
    )


def open_with_transformers(folder, **kwargs):
    import torch
    import transformers

    model, info = transformers.RecurrentGemmaForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, device_map="cpu", **kwargs
    )
    assert not any(info.values()), info
    return model


def transformers_logits(model, tokens):
    import torch

    # In eval mode bitsandbytes rounds the scales to bfloat16 on CPUs with AVX512.
    model.train()
    with torch.no_grad():
        return model(torch.tensor(tokens), use_cache=False).logits.float().numpy()


def assert_close(actual, expected, bound):
    assert np.ptp(expected) > 0.5
    assert np.abs(actual - expected).max() <= bound * np.abs(expected).max()


# On a CPU bitsandbytes reads rows that end within a block otherwise than it wrote them.
WHOLE_BLOCKS = CONFIG.replace(recurrence_width=64)
TOKENS = np.random.default_rng(0).integers(3, 128, (2, 24))


@pytest.mark.parity
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_a_folder_quantized_by_transformers_is_read(tmp_path, quant_type, double_quant):
    save_checkpoint(
        tmp_path / "whole", WHOLE_BLOCKS, random_params(WHOLE_BLOCKS), format="huggingface"
    )
    model = open_with_transformers(
        tmp_path / "whole", quantization_config=bitsandbytes_config(quant_type, double_quant)
    )
    model.save_pretrained(tmp_path / "packed", max_shard_size="100KB")
    assert (tmp_path / "packed" / INDEX_FILE).is_file()
    loaded = load_checkpoint(tmp_path / "packed")
    weight = loaded.params["blocks_1"]["mlp_block"]["up_proj"]["weight"]
    assert (weight.quant_type, weight.double_quantized) == (quant_type, double_quant)
    ours = logits(WHOLE_BLOCKS, loaded.params, TOKENS)
    assert_close(ours, logits(WHOLE_BLOCKS, unpack(loaded.params), TOKENS), 2e-6)
    assert_close(ours, transformers_logits(model, TOKENS), 1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_transformers_reads_a_packed_folder_of_ours(tmp_path, quant_type, double_quant):
    params = pack(random_params(WHOLE_BLOCKS), quant_type=quant_type, double_quant=double_quant)
    settings = bitsandbytes_config(quant_type, double_quant).to_dict()
    save_checkpoint(
        tmp_path / "model",
        WHOLE_BLOCKS,
        params,
        format="huggingface",
        quantization=settings,
        max_shard_size=40_000,
    )
    theirs = transformers_logits(open_with_transformers(tmp_path / "model"), TOKENS)
    assert_close(theirs, logits(WHOLE_BLOCKS, params, TOKENS), 1e-4)


@pytest.mark.parametrize(
    ("tied", "skipped", "written"),
    [
        (True, None, None),
        (True, ("q_proj",), ["q_proj", "lm_head"]),
        (True, (), ["lm_head"]),
        (True, ("lm_head", "q_proj"), ["lm_head", "q_proj"]),
        (False, None, None),
        (False, ("q_proj",), ["q_proj"]),  # a head of its own is packed with the rest
    ],
)
@pytest.mark.parametrize("format", FORMATS)
def test_the_list_of_skipped_layers_names_every_layer_that_is_whole(
    tmp_path, format, tied, skipped, written
):
    config = CONFIG.replace(tie_embeddings=tied)
    settings = QuantizationConfig(bnb_4bit_quant_type="nf4", llm_int8_skip_modules=skipped)
    lm = griffin_jax.quantize(griffin_jax.LanguageModel(config, random_params(config)), settings)
    griffin_jax.save(lm, tmp_path / "model", format=format)
    loaded = load_checkpoint(tmp_path / "model")
    assert loaded.quantization["llm_int8_skip_modules"] == written
    assert_same_tree(loaded.params, lm.params)
