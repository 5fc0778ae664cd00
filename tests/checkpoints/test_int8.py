"""8-bit weights in checkpoints: transformers' folders, ours, and what is wrong with some."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import griffin_jax
from griffin_jax.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from griffin_jax.checkpoints.shards import WEIGHTS_FILE
from griffin_jax.quantization import FORMATS, PACKINGS, QuantizationConfig, int8
from griffin_jax.quantization.int8 import Int8Weight
from griffin_jax.weight import dequantized, is_weight
from tests.checkpoints.test_packed import (
    TOKENS,
    assert_close,
    edit_tensors,
    open_with_transformers,
    transformers_logits,
)
from tests.checkpoints.tiny_model import (
    CONFIG,
    assert_same_tree,
    edit_json,
    logits,
    one_line_error,
    random_params,
)

INT8 = PACKINGS["int8"]
UP = "model.layers.1.mlp_block.up_proj.weight"
SCALES, ORDER = (UP.replace("weight", end) for end in ("SCB", "weight_format"))


@pytest.fixture(scope="module")
def whole():
    return griffin_jax.LanguageModel(CONFIG, random_params(CONFIG))


@pytest.fixture(scope="module")
def packed(whole):
    return griffin_jax.quantize(whole, INT8)


def values(params):
    return jax.tree.map(lambda x: dequantized(x, jnp.float32), params, is_leaf=is_weight)


def test_every_linear_weight_is_packed_and_multiplies_as_its_values(whole, packed):
    weights = [x for x in jax.tree.leaves(packed.params, is_leaf=is_weight) if is_weight(x)]
    assert len(weights) == 2 * 3 + 4 + 3 * 3
    assert all(isinstance(weight, Int8Weight) for weight in weights)
    assert packed.quantization == INT8 and packed.dtype == whole.dtype
    expected = logits(CONFIG, values(packed.params), TOKENS)
    assert_close(logits(CONFIG, packed.params, TOKENS), expected, 2e-6)
    back = griffin_jax.dequantize(packed)
    assert_same_tree(back.params, values(packed.params))
    assert back.quantization is None


@pytest.mark.parametrize("format", ["huggingface", "orbax"])
def test_saving_and_loading_changes_nothing(tmp_path, packed, format):
    griffin_jax.save(packed, tmp_path / "model", format=format)
    back = griffin_jax.load(tmp_path / "model", dtype="float32")
    assert_same_tree(back.params, packed.params)
    assert back.quantization == INT8
    again = griffin_jax.load(tmp_path / "model", dtype="float32", quantization=INT8)
    assert_same_tree(again.params, packed.params)
    with pytest.raises(CheckpointError, match="is packed already, as int8: another") as caught:
        griffin_jax.load(tmp_path / "model", quantization=PACKINGS["nf4"])
    assert "\n" not in str(caught.value)
    expected = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    assert griffin_jax.load(tmp_path / "model").dtype == expected


@pytest.mark.slow
def test_packing_while_loading_and_in_stacks_is_packing_what_is_loaded(tmp_path, whole, packed):
    griffin_jax.save(whole, tmp_path / "model")
    loaded = griffin_jax.load(tmp_path / "model", dtype="float32", quantization=INT8)
    assert_same_tree(loaded.params, packed.params)
    config = CONFIG.replace(num_layers=7)
    deep = griffin_jax.quantize(griffin_jax.LanguageModel(config, random_params(config)), INT8)
    stacked = griffin_jax.LanguageModel(
        config, griffin_jax.models.stack_params(config, deep.params), quantization=INT8
    )
    assert_close(logits(config, stacked.params, TOKENS), logits(config, deep.params, TOKENS), 2e-6)
    griffin_jax.save(stacked, tmp_path / "stacked", format="huggingface")
    assert_same_tree(load_checkpoint(tmp_path / "stacked").params, deep.params)


def test_skipped_layers_stay_whole_and_are_named(tmp_path, whole):
    settings = dataclasses.replace(INT8, llm_int8_skip_modules=("up_proj",))
    skipping = griffin_jax.quantize(whole, settings)
    griffin_jax.save(skipping, tmp_path / "model", format="huggingface")
    loaded = load_checkpoint(tmp_path / "model")
    assert_same_tree(loaded.params, skipping.params)
    assert loaded.quantization["llm_int8_skip_modules"] == ["up_proj", "lm_head"]
    assert loaded.quantization["load_in_8bit"] and not loaded.quantization["load_in_4bit"]


def test_a_model_in_4_and_in_8_bits_is_refused_where_one_setting_is_to_say_both(tmp_path, packed):
    mixed = dict(packed.params)
    mlp = mixed["blocks_1"]["mlp_block"]
    up = FORMATS["nf4"].pack(np.ones((CONFIG.mlp_width, CONFIG.width), np.float32), PACKINGS["nf4"])
    mixed["blocks_1"] = mixed["blocks_1"] | {"mlp_block": mlp | {"up_proj": {"weight": up}}}
    mixed["blocks_1"]["mlp_block"]["up_proj"] |= {"bias": mlp["up_proj"]["bias"]}
    for format in ("huggingface", "orbax"):
        with pytest.raises(CheckpointError, match=r"weights are packed as nf4, but .*load_in_8bit"):
            save_checkpoint(tmp_path / "model", CONFIG, mixed, format=format)
        assert not (tmp_path / "model").exists()


@pytest.fixture
def folder(tmp_path, packed):
    griffin_jax.save(packed, tmp_path / "model", format="huggingface")
    return tmp_path / "model"


def changed(name, value):
    return lambda tensors: tensors.update({name: value(tensors[name])})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(SCALES), f"{SCALES} is missing"),
        (lambda tensors: tensors.pop(UP), f"tensor {UP} is missing"),
        (changed(SCALES, lambda x: x[:-1]), f"{SCALES} is float32"),
        (changed(SCALES, lambda x: x.astype(np.float16)), f"{SCALES} is float16"),
        (changed(SCALES, lambda x: x * np.float32(np.inf)), f"{SCALES} holds NaN or infinity"),
        (changed(ORDER, np.ones_like), f"{ORDER} is [1] (col32); only 0 is read"),
        (changed(UP, lambda x: x.astype(np.float32)), f"{UP} is float32"),
        (changed(UP, lambda x: np.ascontiguousarray(x[:, :-1])), f"{UP} has shape"),
        (
            lambda tensors: [tensors.pop(name) for name in (SCALES, ORDER)],
            f"tensor {UP} holds packed bytes but has no SCB; the folder is half-quantized",
        ),
        (
            lambda tensors: tensors.update({f"{UP}.absmax": np.ones(3, np.float32)}),
            f"{UP} has parts of two formats",
        ),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line_that_names_the_tensor(folder, change, words):
    edit_tensors(folder, change)
    assert words in one_line_error(folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"load_in_4bit": True, "_load_in_4bit": True}, "are both true: weights are packed in one"),
        ({"llm_int8_has_fp16_weight": True}, "llm_int8_has_fp16_weight is true"),
        ({"load_in_8bit": False}, "load_in_8bit and _load_in_8bit contradict each other"),
        ({"load_in_8bit": False, "_load_in_8bit": False}, "both false: there is nothing"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(folder, settings, words):
    values = json.loads((folder / "config.json").read_text())["quantization_config"]
    edit_json(folder / "config.json", quantization_config=values | settings)
    assert words in one_line_error(folder)


def test_a_packing_of_ours_that_no_row_reads_is_named(tmp_path, packed):
    griffin_jax.save(packed, tmp_path / "model")
    file = tmp_path / "model" / "griffin_config.json"
    packings = json.loads(file.read_text())["packed"]
    path = "blocks_1/mlp_block/up_proj/weight"
    assert packings[path] == {"quant_type": "int8"}
    edit_json(file, packed=packings | {path: {"quant_type": "int3"}})
    assert "no weight format 'int3'; there are nf4, fp4, int8" in one_line_error(tmp_path / "model")
    edit_json(file, packed=packings | {path: {"quant_type": "int8", "block_size": 64}})
    assert "int8 weights have no block_size" in one_line_error(tmp_path / "model")


@pytest.mark.parity
def test_a_folder_in_8_bits_written_by_transformers_is_read_and_written_again(tmp_path):
    import torch
    import transformers

    save_checkpoint(tmp_path / "whole", CONFIG, random_params(CONFIG), format="huggingface")
    model = open_with_transformers(
        tmp_path / "whole", quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True)
    )
    model.save_pretrained(tmp_path / "packed")
    read = load_checkpoint(tmp_path / "packed")
    # What we make of the same weights is the same to the bit, and so is the folder.
    settings = QuantizationConfig.from_dict(read.quantization)
    assert settings.name == "int8"
    ours = load_checkpoint(tmp_path / "whole", quantization=settings)
    assert_same_tree(ours.params, read.params)
    save_checkpoint(
        tmp_path / "ours", CONFIG, ours.params, format="huggingface", quantization=ours.quantization
    )
    theirs, mine = (
        safetensors.numpy.load_file(tmp_path / name / WEIGHTS_FILE) for name in ("packed", "ours")
    )
    assert set(theirs) == set(mine)
    for name, array in theirs.items():
        assert (array.dtype, array.shape) == (mine[name].dtype, mine[name].shape), name
        np.testing.assert_array_equal(array, mine[name], err_msg=name)
    described = [
        json.loads((tmp_path / name / "config.json").read_text())["quantization_config"]
        for name in ("packed", "ours")
    ]
    assert described[0] == described[1]
    # transformers reads our folder, and its own dequantized model computes what ours does.
    again = open_with_transformers(tmp_path / "ours")
    weight = again.model.layers[1].mlp_block.up_proj.weight
    np.testing.assert_array_equal(weight.data.numpy(), mine[UP])
    np.testing.assert_array_equal(weight.SCB.numpy(), mine[SCALES])
    expected = logits(CONFIG, read.params, TOKENS)
    # In training its products on a CPU are those of the dequantized weights. Otherwise they round
    # activations to 8 bits, and are that far off.
    assert_close(transformers_logits(again, TOKENS), expected, 1e-5)
    with torch.no_grad():
        rounded = again.eval()(torch.tensor(TOKENS), use_cache=False).logits.numpy()
    assert 1e-4 < np.abs(rounded - expected).max() / np.abs(expected).max() < 0.1
    assert_close(transformers_logits(again.dequantize(), TOKENS), expected, 1e-5)
    np.testing.assert_array_equal(
        again.model.layers[1].mlp_block.up_proj.weight.detach().numpy(),
        int8.from_arrays(mine, UP).dequantize(),
    )
