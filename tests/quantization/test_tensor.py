import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from griffin_jax.quantization import abstract, codes, dequantize, quantize
from tests.quantization.weights import DTYPES, weights

GOLDENS = np.load(pathlib.Path(__file__).with_name("goldens.npz"))
CASES = sorted({key.rpartition("|")[0] for key in GOLDENS.files if key.startswith("output|")})


def bits(array):
    array = np.ascontiguousarray(array)
    return array.view(f"i{array.itemsize}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.partition("|")[2])
def test_bytes_statistics_and_values_are_those_recorded_from_bitsandbytes(case):
    _, shape, dtype, quant_type, block_size, double = case.split("|")
    stacked = GOLDENS[f"input|{shape}|{dtype}"].view(DTYPES[dtype])
    names = [name for name, _ in weights(dtype, (1, 1))]
    for index, weight in enumerate(stacked):
        tensor = quantize(
            weight, quant_type, block_size=int(block_size), double_quant=double == "True"
        )
        for key in (key for key in GOLDENS.files if key.startswith(f"{case}|")):
            what = key.rpartition("|")[2]
            if what.startswith("values in "):
                ours = dequantize(tensor, what.removeprefix("values in "))
            else:
                ours = np.reshape(getattr(tensor, what), GOLDENS[key][index].shape)
            assert_bits_equal(ours, GOLDENS[key][index], f"{names[index]}: {what}")


def assert_bits_equal(ours, recorded, message):
    """Equal bits, but that one NaN is as good as another, and so is zero as what bfloat16 has below.

    (Which of its code paths bitsandbytes takes, and so whether it keeps subnormal bfloat16 numbers,
    hangs on the CPU and on the shape.)
    """
    ours = np.asarray(ours)
    theirs = recorded.view(ours.dtype)
    same = (bits(ours) == bits(theirs)) | (np.isnan(ours) & np.isnan(theirs))
    if ours.dtype == jnp.bfloat16:
        same |= ((bits(ours) & 0x7FFF) == 0) & ((bits(theirs) & 0x7FFF) <= 0x80)
    assert same.all(), f"{message}: {ours[~same][:5]} instead of {theirs[~same][:5]}"


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_weights_beside_a_midpoint_take_the_code_that_float32_rounding_gives(quant_type):
    random = np.random.default_rng(0)
    order = codes.ordered_codes(quant_type)
    middle = codes.midpoints(quant_type)
    absmax = np.exp2(random.uniform(-80, 80, (512, 1))).astype(np.float32)
    near = (np.append(middle, 1) * absmax).astype(np.float32)
    ulps = random.integers(-2, 3, near.shape)
    ulps[:, -1] = 0
    ulps = np.where(near == 0, np.abs(ulps), ulps).astype(np.int32)
    weight = (bits(near) + ulps).view(np.float32)
    weight = np.concatenate([weight, -weight], axis=1)

    tensor = quantize(weight, quant_type, block_size=32)

    scaled = weight * (np.float32(1) / absmax)
    expected = order[np.searchsorted(middle, scaled)]
    np.testing.assert_array_equal(tensor.packed >> 4, expected[:, ::2])
    np.testing.assert_array_equal(tensor.packed & 15, expected[:, 1::2])
    np.testing.assert_array_equal(np.asarray(tensor.absmax), absmax)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("shape", [(6, 128), (6, 100), (3, 5)])
def test_abstract_is_the_structure_of_a_quantized_weight(shape, double_quant):
    weight = np.ones(shape, DTYPES["bfloat16"])
    real = quantize(weight, "fp4", double_quant=double_quant)
    expected = abstract(shape, "bfloat16", "fp4", double_quant=double_quant)
    assert jax.tree.structure(real) == jax.tree.structure(expected)
    for leaf, like in zip(jax.tree.leaves(real), jax.tree.leaves(expected), strict=True):
        assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
    assert real.nbytes == expected.nbytes
    assert (real.shape, real.ndim, real.size, real.dtype) == (
        weight.shape,
        weight.ndim,
        weight.size,
        weight.dtype,
    )


def test_nf4_takes_four_and_a_half_bits_a_weight_and_less_with_double_quantization():
    weight = np.ones((256, 512), np.float32)
    books = 16 * 4
    assert quantize(weight).nbytes - books == weight.size * 4.5 / 8
    nested = 256 * 4 + 4 + weight.size // 64 // 256 * 4
    assert quantize(weight, double_quant=True).nbytes - books - nested == weight.size * 4.125 / 8


def test_weights_joined_along_out_quantize_to_leaves_joined_along_out():
    first, second = np.split(np.random.default_rng(0).standard_normal((10, 128), np.float32), [4])
    joined = quantize(np.concatenate([first, second]))
    first, second = quantize(first), quantize(second)
    for name in ("packed", "absmax"):
        parts = [getattr(first, name), getattr(second, name)]
        np.testing.assert_array_equal(getattr(joined, name), np.concatenate(parts))


def test_quantizing_dequantized_values_gives_the_same_bytes():
    tensor = quantize(np.random.default_rng(0).standard_normal((8, 256), np.float32))
    again = quantize(dequantize(tensor))
    jax.tree.map(np.testing.assert_array_equal, again, tensor)


@pytest.mark.parametrize("double_quant", [False, True])
def test_dequantizing_inside_jit_gives_the_same_bits(double_quant):
    weight = np.random.default_rng(0).standard_normal((3, 100), np.float32)
    tensor = quantize(weight, double_quant=double_quant)
    inside = jax.jit(dequantize)(tensor)
    np.testing.assert_array_equal(bits(inside), bits(dequantize(tensor)))


def test_rows_can_live_on_different_devices():
    mesh = jax.make_mesh((len(jax.devices()),), ("out",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("out"))
    weight = np.random.default_rng(0).standard_normal((4 * len(jax.devices()), 128), np.float32)
    tensor = quantize(weight)
    spread = tensor.replace(
        packed=jax.device_put(tensor.packed, rows), absmax=jax.device_put(tensor.absmax, rows)
    )
    values = jax.jit(dequantize, out_shardings=rows)(spread)
    np.testing.assert_array_equal(values, dequantize(tensor))


def test_a_checkpoint_gives_the_tensor_back(tmp_path):
    weight = np.random.default_rng(0).standard_normal((6, 128), np.float32)
    params = {"layer": {"weight": quantize(weight, double_quant=True)}}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", params)
        checkpointer.wait_until_finished()
        like = {"layer": {"weight": abstract((6, 128), "float32", double_quant=True)}}
        restored = checkpointer.restore(tmp_path / "params", like)
    assert jax.tree.structure(restored) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, restored, params)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(dtype, value):
    weight = np.ones((2, 128), DTYPES[dtype])
    weight[1, 5] = value
    with pytest.raises(ValueError, match=r"up_proj\.weight holds NaN or infinity"):
        quantize(weight, name="up_proj.weight")


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (np.ones((2, 64), np.float32), {"quant_type": "int4"}, "unknown 4-bit type 'int4'"),
        (np.ones((2, 64), np.float32), {"block_size": 48}, "block size 48 is none of"),
        (np.ones((2, 64), np.int32), {}, "is int32"),
        (np.ones((0, 64), np.float32), {}, "no elements"),
    ],
)
def test_what_cannot_be_quantized_is_refused_in_one_line(weight, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        quantize(weight, **options)
    assert "\n" not in str(caught.value)
