import json

import jax
import numpy as np
import pytest

from griffin_jax.errors import CheckpointError
from griffin_jax.quantization import quantize
from griffin_jax.quantization.bitsandbytes import from_arrays, to_arrays

NAME = "model.layers.0.mlp_block.up_proj.weight"
STATE = f"{NAME}.quant_state.bitsandbytes__nf4"


def tensor(shape=(6, 128), **options):
    return quantize(np.random.default_rng(0).standard_normal(shape, np.float32), **options)


@pytest.mark.parametrize("storage", ["uint8", "int8", "float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"double_quant": True}, {"quant_type": "fp4"}])
def test_a_weight_comes_back_from_its_arrays(options, storage):
    weight = tensor(**options)
    arrays = to_arrays(weight, NAME, storage)
    assert arrays[NAME].dtype == storage
    assert arrays[NAME].shape == (6 * 128 // 2 // arrays[NAME].itemsize, 1)
    back = from_arrays(arrays | {"model.final_norm.weight": np.ones(3)}, NAME)
    assert jax.tree.structure(back) == jax.tree.structure(weight)
    jax.tree.map(np.testing.assert_array_equal, back, weight)


def test_a_weight_whose_rows_end_within_a_block_comes_back():
    weight = tensor((3, 5), double_quant=True)
    jax.tree.map(np.testing.assert_array_equal, from_arrays(to_arrays(weight, NAME), NAME), weight)


def test_the_arrays_have_the_names_and_the_json_of_bitsandbytes():
    arrays = to_arrays(tensor(), NAME)
    assert set(arrays) == {NAME, f"{NAME}.absmax", f"{NAME}.quant_map", STATE}
    assert bytes(arrays[STATE]).decode() == (
        '{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [6, 128]}'
    )
    nested = to_arrays(tensor(double_quant=True), NAME)
    assert set(nested) - set(arrays) == {f"{NAME}.nested_absmax", f"{NAME}.nested_quant_map"}
    assert list(json.loads(bytes(nested[STATE])))[4:] == [
        "nested_blocksize",
        "nested_dtype",
        "nested_offset",
    ]


def edited(**changes):
    """The arrays of a double-quantized weight, its quant_state edited."""
    arrays = to_arrays(tensor(double_quant=True), NAME)
    state = json.loads(bytes(arrays[STATE])) | changes
    state = {key: value for key, value in state.items() if value is not None}
    return arrays | {STATE: np.frombuffer(json.dumps(state).encode(), np.uint8)}


def without(suffix):
    arrays = edited()
    del arrays[NAME + suffix]
    return arrays


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (edited(shape=[6, 64]), r"quant_state says shape \[6, 64\], which packs into 192 bytes"),
        (edited(shape=[128]), "packs into 64 bytes, but there are 384"),
        (edited(shape=None), "is not a quant_state in JSON"),
        (edited(blocksize="64"), "block size '64' is none of"),
        (edited(shape=[-64, -128]), "which has no elements"),
        (edited(blocksize=48), "block size 48 is none of"),
        (edited(blocksize=128), r"absmax has 12 elements; quant_state calls for 6"),
        (edited(quant_type="int4"), "unknown 4-bit type 'int4'"),
        (edited(quant_type="fp4"), "says its type is 'fp4'"),
        (edited(dtype="int8"), "quant_state says dtype 'int8'"),
        (edited(nested_offset=None), "quant_state has no nested_offset"),
        (edited(nested_blocksize=64), "nested_blocksize 64 is not 256"),
        (without(""), "up_proj.weight is missing"),
        (without(".absmax"), "absmax is missing"),
        (without(".quant_map"), "quant_map is missing"),
        (without(".nested_absmax"), "nested_absmax is missing"),
        (without(".nested_quant_map"), "nested_quant_map is missing"),
        (without(".quant_state.bitsandbytes__nf4"), "needs one quant_state.bitsandbytes__nf4"),
        (edited() | {f"{NAME}.absmax": np.ones(12, np.float32)}, "absmax is float32; uint8"),
        (edited() | {f"{NAME}.quant_map": np.ones(16, np.float32)}, "not the code book of nf4"),
        (
            edited() | {f"{NAME}.nested_absmax": np.full(1, np.nan, np.float32)},
            "nested_absmax holds NaN or infinity",
        ),
        (edited() | {STATE: np.frombuffer(b"{nonsense", np.uint8)}, "not a quant_state in JSON"),
    ],
)
def test_a_contradiction_is_refused_in_one_line_that_names_the_tensor(arrays, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        from_arrays(arrays, NAME)
    assert NAME in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_storage_type_that_does_not_divide_the_bytes_is_refused():
    with pytest.raises(CheckpointError, match="33 packed bytes do not divide into bfloat16"):
        to_arrays(tensor((1, 66)), NAME, "bfloat16")
