"""8-bit weights, against what is recorded from bitsandbytes."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.errors import CheckpointError
from griffin_jax.quantization import FORMATS, int8
from griffin_jax.quantization.formats import format_at, format_of_type, read_packed
from griffin_jax.quantization.int8 import Int8Weight
from tests.quantization.int8_weights import weights
from tests.quantization.test_tensor import bits
from tests.quantization.weights import DTYPES

GOLDENS = np.load(pathlib.Path(__file__).with_name("int8_goldens.npz"))
NAME = "model.layers.0.mlp_block.up_proj.weight"
SCALES, ORDER = (NAME.replace("weight", end) for end in ("SCB", "weight_format"))


def random_weight(shape=(6, 96), seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_integers_scales_and_values_are_those_recorded_from_bitsandbytes(dtype):
    stacked = GOLDENS[f"input|{dtype}"].view(DTYPES[dtype])
    names = [name for name, _ in weights(dtype, (1, 1))]
    assert len(names) == len(stacked)
    for i, (name, weight) in enumerate(zip(names, stacked, strict=True)):
        packed = int8.pack(weight)
        np.testing.assert_array_equal(packed.rows, GOLDENS[f"rows|{dtype}"][i], name)
        np.testing.assert_array_equal(bits(packed.absmax), GOLDENS[f"absmax|{dtype}"][i], name)
        values = packed.dequantize()
        assert values.dtype == jnp.float32
        np.testing.assert_array_equal(bits(values), GOLDENS[f"values|{dtype}"][i], name)
        inside = jax.jit(lambda packed: packed.dequantize())(packed)
        np.testing.assert_array_equal(bits(inside), bits(values), name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("factor", [1, 2.0**-17, 1e-36, 1e-42, 3e38])
def test_values_in_16_bits_and_of_any_scale_are_float32_products_rounded_once(dtype, factor):
    rows = np.arange(-127, 128, dtype=np.int8)[None].repeat(3, 0)
    absmax = np.array([1, 0.3, 7e-3], np.float32) * np.float32(factor)
    with np.errstate(over="ignore"):
        exact = rows.astype(np.float32) * absmax[:, None] * np.float32(7.874015718698502e-3)
        expected = exact.astype(DTYPES[dtype])
    packed = Int8Weight(rows=jnp.asarray(rows), absmax=jnp.asarray(absmax))
    np.testing.assert_array_equal(bits(packed.dequantize()), bits(exact))
    np.testing.assert_array_equal(bits(packed.dequantize(dtype)), bits(expected))


def test_quantizing_dequantized_values_gives_the_same_integers():
    packed = int8.pack(random_weight())
    again = int8.pack(packed.dequantize())
    np.testing.assert_array_equal(again.rows, packed.rows)


def test_abstract_is_the_structure_of_a_packed_weight():
    real, like = int8.pack(random_weight()), int8.abstract((6, 96))
    assert jax.tree.structure(real) == jax.tree.structure(like)
    for leaf, struct in zip(jax.tree.leaves(real), jax.tree.leaves(like), strict=True):
        assert (leaf.shape, leaf.dtype) == (struct.shape, struct.dtype)
    assert (real.shape, real.ndim, real.size, real.nbytes) == ((6, 96), 2, 576, 576 + 6 * 4)
    assert like.nbytes == real.nbytes and real.dtype == jnp.float32
    assert jax.tree.structure(int8.from_metadata((6, 96), int8.metadata(real))) == (
        jax.tree.structure(like)
    )


def test_noise_has_the_size_that_layers_begin_with():
    drawn = int8.noise(jax.random.key(0), int8.abstract((64, 256)))
    assert drawn.rows.dtype == jnp.int8 and len(np.unique(drawn.rows)) == 256
    assert np.std(drawn.dequantize()) == pytest.approx(256**-0.5, rel=0.05)


def test_axes_cut_rows_with_their_scales_and_leave_scales_whole_where_inputs_are_cut():
    packed = int8.pack(random_weight())
    assert packed.axes(("features", None)) == Int8Weight(("features", None), ("features",))
    assert packed.axes((None, "features")) == Int8Weight((None, "features"), (None,))
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), packed)
    assert stack.shape == (6, 96)
    assert stack.axes(("features", "width")) == Int8Weight(
        (None, "features", "width"), (None, "features")
    )


def test_a_weight_comes_back_from_its_arrays():
    packed = int8.pack(random_weight())
    arrays = int8.to_arrays(packed, NAME)
    assert set(arrays) == {NAME, SCALES, ORDER}
    assert (arrays[ORDER].dtype, arrays[ORDER].shape) == (np.uint8, ())
    back = read_packed(arrays, NAME)
    assert isinstance(back, Int8Weight)
    jax.tree.map(np.testing.assert_array_equal, back, packed)
    assert {format_at(part) for part in (SCALES, ORDER)} == {(int8, NAME)}
    assert format_at(NAME) is None


def edited(**changes):
    """The arrays of a weight, some replaced and those that are None left out."""
    names = {"rows": NAME, "scales": SCALES, "order": ORDER}
    arrays = int8.to_arrays(int8.pack(random_weight()), NAME)
    arrays |= {names[what]: value for what, value in changes.items()}
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (edited(scales=None), r"up_proj\.SCB is missing, the scales of the 8-bit weight"),
        (edited(rows=None), r"up_proj\.weight is missing, the 8-bit weight of"),
        (edited(scales=np.ones((6, 1), np.float32)), r"SCB is float32\[6, 1\]; float32\[6\]"),
        (edited(scales=np.ones(7, np.float32)), r"SCB is float32\[7\]; float32\[6\]"),
        (edited(scales=np.ones(6, np.float16)), r"SCB is float16\[6\]; float32\[6\]"),
        (edited(scales=np.full(6, np.nan, np.float32)), "SCB holds NaN or infinity"),
        (edited(scales=np.full(6, np.inf, np.float32)), "SCB holds NaN or infinity"),
        (edited(rows=np.ones((6, 96), np.float32)), r"weight is float32\[6, 96\]; beside"),
        (edited(rows=np.ones((6, 96), np.uint8)), r"weight is uint8\[6, 96\]; beside"),
        (edited(rows=np.ones(576, np.int8)), r"weight is int8\[576\]; beside"),
        (edited(order=np.uint8(2)), r"weight_format is \[2\] \(col_turing\); only 0 is read"),
        (edited(order=np.uint8(9)), r"weight_format is \[9\] \(unknown\); only 0 is read"),
        (
            edited() | {f"{NAME}.absmax": np.ones(9, np.float32)},
            "weight has parts of two formats, .*SCB and .*absmax: a weight is packed in one way",
        ),
    ],
)
def test_a_contradiction_is_refused_in_one_line_that_names_the_tensor(arrays, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        read_packed(arrays, NAME)
    assert NAME.removesuffix("weight") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_weight_without_a_format_of_its_order_is_in_order():
    packed = read_packed(edited(order=None), NAME)
    np.testing.assert_array_equal(packed.rows, int8.pack(random_weight()).rows)


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (np.ones((2, 64), np.int32), {}, "up is int32; 8 bits are made of float32"),
        (np.ones((0, 64), np.float32), {}, r"up has shape \(0, 64\)"),
        (np.ones(64, np.float32), {}, r"up has shape \(64,\)"),
        (np.full((2, 64), np.nan, np.float32), {}, "up holds NaN or infinity"),
        (np.full((2, 64), np.inf, np.float16), {}, "up holds NaN or infinity"),
        (np.full((2, 64), 65520, np.float32), {}, "up goes beyond 65,504"),
        (np.ones((2, 64), np.float32), {"block_size": 128}, "up: 8-bit .* block_size of 128"),
    ],
)
def test_what_cannot_be_packed_is_refused_in_one_line_by_name(weight, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        int8.pack(weight, name="up", **options)
    assert "\n" not in str(caught.value)


def test_the_table_names_its_formats_where_it_has_no_row():
    assert format_of_type("int8") is int8
    with pytest.raises(ValueError, match="no weight format 'int3'; there are nf4, fp4, int8"):
        format_of_type("int3")


def test_every_row_offers_what_the_table_asks_of_it():
    from griffin_jax.quantization.formats import Format

    wanted = {name for name in vars(Format) if not name.startswith("_")} | {"MARK"}
    for form in FORMATS.values():
        assert all(hasattr(form, name) for name in wanted)
