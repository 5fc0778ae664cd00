import json

import jax.numpy as jnp
import pytest

from griffin_jax.quantization import QuantizationConfig

PUBLISHED = """{
  "_load_in_4bit": true,
  "_load_in_8bit": false,
  "bnb_4bit_compute_dtype": "float16",
  "bnb_4bit_quant_storage": "uint8",
  "bnb_4bit_quant_type": "nf4",
  "bnb_4bit_use_double_quant": false,
  "llm_int8_enable_fp32_cpu_offload": false,
  "llm_int8_has_fp16_weight": false,
  "llm_int8_skip_modules": null,
  "llm_int8_threshold": 6.0,
  "load_in_4bit": true,
  "load_in_8bit": false,
  "quant_method": "bitsandbytes"
}"""


def test_the_published_configuration_comes_back_character_for_character():
    config = QuantizationConfig.from_dict(json.loads(PUBLISHED))
    assert json.dumps(config.to_dict(), indent=2) == PUBLISHED
    assert config.bnb_4bit_quant_type == "nf4"
    assert not config.bnb_4bit_use_double_quant


def test_every_field_survives_the_way_to_json_and_back():
    config = QuantizationConfig(
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype="float32",
        bnb_4bit_quant_storage="bfloat16",
        llm_int8_skip_modules=["lm_head", "model.layers.3"],
        llm_int8_threshold=4.5,
        llm_int8_enable_fp32_cpu_offload=True,
        llm_int8_has_fp16_weight=True,
    )
    assert QuantizationConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_float16_is_computed_in_only_on_request():
    config = QuantizationConfig.from_dict(json.loads(PUBLISHED))
    assert config.compute_dtype() == jnp.bfloat16
    assert config.compute_dtype("float16") == jnp.float16
    assert QuantizationConfig().compute_dtype() == jnp.bfloat16
    assert QuantizationConfig(bnb_4bit_compute_dtype="float32").compute_dtype() == jnp.float32


def test_a_file_that_names_no_compute_dtype_means_float32():
    assert QuantizationConfig.from_dict({"load_in_4bit": True}).compute_dtype() == jnp.float32


@pytest.mark.parametrize(
    ("patterns", "module", "skipped"),
    [
        (None, "lm_head", True),
        (None, "model.layers.0.mlp_block.gate_proj", False),
        (["gate_proj"], "model.layers.0.mlp_block.gate_proj", True),
        (["gate_proj"], "lm_head", False),
        (["model.layers.1"], "model.layers.1.mlp_block.up_proj", True),
        (["model.layers.1"], "model.layers.10.mlp_block.up_proj", True),
        (["layers.1"], "model.layers.1.mlp_block.up_proj", False),
        ([r"model\.layers\.\d\."], "model.layers.12.mlp_block.up_proj", False),
        ([], "lm_head", False),
    ],
)
def test_modules_are_skipped_by_beginning_pattern_or_end(patterns, module, skipped):
    assert QuantizationConfig(llm_int8_skip_modules=patterns).skips(module) == skipped


@pytest.mark.parametrize(
    "change",
    [
        {"bnb_4bit_compute_dtype": None},
        {"bnb_4bit_quant_storage": None, "bnb_4bit_use_double_quant": None},
        {"llm_int8_threshold": None, "llm_int8_has_fp16_weight": None},
        {"_load_in_8bit": None, "load_in_8bit": None, "quant_method": None},
        {"target_parameters": None},
        {"a_newer_setting": False, "another": [], "and_one_more": ""},
    ],
)
def test_what_asks_for_nothing_means_the_default(change):
    """Null is transformers' default, which it has for fields that a file leaves out, too."""
    values = json.loads(PUBLISHED) | change
    left_out = {name: value for name, value in values.items() if name not in change}
    assert QuantizationConfig.from_dict(values) == QuantizationConfig.from_dict(left_out)


def test_a_whole_number_as_threshold_is_written_as_the_float_that_transformers_wants():
    config = QuantizationConfig.from_dict(json.loads(PUBLISHED) | {"llm_int8_threshold": 6})
    assert json.dumps(config.to_dict(), indent=2) == PUBLISHED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"load_in_8bit": True}, "load_in_8bit"),
        ({"load_in_4bit": False}, "_load_in_4bit contradict"),
        ({"load_in_4bit": False, "_load_in_4bit": False}, "nothing to quantize"),
        ({"quant_method": "gptq"}, "quant_method='gptq' .only 'bitsandbytes' is"),
        ({"bnb_4bit_quant_type": "int4"}, "bnb_4bit_quant_type must be one of nf4, fp4"),
        ({"bnb_4bit_compute_dtype": "int8"}, "bnb_4bit_compute_dtype must be one of"),
        ({"bnb_4bit_quant_storage": "int64"}, "bnb_4bit_quant_storage must be one of"),
        ({"bnb_4bit_use_double_quant": 1}, "bnb_4bit_use_double_quant must be true or false"),
        ({"llm_int8_threshold": "6"}, "llm_int8_threshold must be a number"),
        ({"llm_int8_skip_modules": "lm_head"}, "llm_int8_skip_modules must be a list, or None"),
        ({"llm_int8_skip_modules": ["("]}, "not a regular expression"),
        ({"bits": 4}, "bits=4 .an unknown setting"),
        ({"target_parameters": ["w"]}, "target_parameters="),
        ({"load_in_8bit": True, "load_in_4bit": None, "_load_in_4bit": None}, "load_in_8bit"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(change, message):
    values = json.loads(PUBLISHED) | change
    with pytest.raises(ValueError, match=message) as caught:
        QuantizationConfig.from_dict(values)
    assert "\n" not in str(caught.value)
