"""4-bit products on a CPU, against the dequantized weight in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels import packed_matmul_cpu as cpu
from griffin_jax.kernels import rows_cpu
from griffin_jax.kernels.packed_matmul import packed_matmul
from griffin_jax.models.lora_weight import LoRAWeight
from griffin_jax.quantization import dequantize, quantize

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="these need a CPU")


def operands(batch, out, width, dtype="float32", **options):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((*batch, width), np.float32), dtype)
    return x, quantize(random.standard_normal((out, width), np.float32), **options)


def check(y, x, weight, rtol=1e-5):
    exact = np.asarray(x, np.float64) @ np.asarray(dequantize(weight), np.float64).T
    assert y.dtype == x.dtype and y.shape == exact.shape
    y = np.asarray(y, np.float64)
    np.testing.assert_allclose(y, exact, rtol=rtol, atol=2e-6 * np.abs(exact).max())


@pytest.mark.parametrize("batch", [(), (1,), (2, 2)])
@pytest.mark.parametrize("options", [{}, {"quant_type": "fp4", "double_quant": True}])
def test_tables_give_the_product_with_the_dequantized_weight(batch, options):
    x, weight = operands(batch, 96, 192, **options)
    (y,) = packed_matmul(x, [cpu.add_transposed(weight)], kernel="table_cpu")
    check(y, x, weight)


@pytest.mark.parametrize("block_size, width", [(32, 96), (128, 384), (256, 512)])
def test_tables_serve_every_block_size(block_size, width):
    x, weight = operands((1,), 40, width, block_size=block_size)
    check(cpu.table_matmul(x, cpu.add_transposed(weight)), x, weight)


@pytest.mark.parametrize("block_size", [32, 64, 256])
@pytest.mark.parametrize("steps", [1, 2, 8, 32, 1000])
def test_tables_serve_turns_of_parts_of_a_block_and_of_several(monkeypatch, block_size, steps):
    monkeypatch.setattr(cpu, "_TURN", 40 * steps)
    x, weight = operands((1,), 40, 768, block_size=block_size)
    check(cpu.table_matmul(x, cpu.add_transposed(weight)), x, weight)


def test_tables_round_a_bfloat16_row_at_the_end_alone():
    x, weight = operands((1, 1), 64, 128, "bfloat16")
    check(cpu.table_matmul(x, cpu.add_transposed(weight)), x, weight, rtol=2**-8)


@pytest.mark.parametrize("batch", [(1,), (5,), (3, 2)])
@pytest.mark.parametrize("out", [64, 256, 320])
def test_rows_decoded_in_turns_give_the_same_product(batch, out):
    x, weight = operands(batch, out, 128)
    (y,) = packed_matmul(x, [weight], kernel="rows_cpu")
    check(y, x, weight)


@pytest.mark.parametrize("batch", [(), (1,), (3, 2)])
@pytest.mark.parametrize("options", [{}, {"quant_type": "fp4", "double_quant": True}])
def test_values_beside_a_weight_give_the_same_product(batch, options):
    x, weight = operands(batch, 40, 128, **options)
    added = cpu.add_decoded(weight, "float32")
    np.testing.assert_array_equal(added.decoded, dequantize(weight, "float32"))
    (y,) = packed_matmul(x, [added])
    np.testing.assert_array_equal(y, cpu.decoded_matmul(x, added))
    check(y, x, weight)


@pytest.mark.parametrize("has", [True, False])
def test_values_are_in_bfloat16_where_the_processor_multiplies_it(monkeypatch, has):
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: has)
    x, weight = operands((3,), 40, 128, "bfloat16")
    added = cpu.add_decoded({"w": weight}, "bfloat16")["w"]
    assert added.decoded.dtype == ("bfloat16" if has else "float32")
    np.testing.assert_array_equal(added.decoded, dequantize(weight, added.decoded.dtype))
    assert added.decoded.nbytes == cpu.decoded_nbytes(weight, "bfloat16")
    exact = np.asarray(x, np.float64) @ np.asarray(added.decoded, np.float64).T
    y = np.asarray(packed_matmul(x, [added], kernel="decoded_cpu")[0], np.float64)
    np.testing.assert_allclose(y, exact, rtol=2**-8, atol=1e-5 * np.abs(exact).max())
    if has:  # float32 would be multiplied by numbers that were rounded
        with pytest.raises(ValueError, match="for activations of another dtype than float32"):
            packed_matmul(x.astype(jnp.float32), [added], kernel="decoded_cpu")


@pytest.mark.parametrize("most, free", [(1, None), (1, 2), (1, 1.9), (0.9, None)])
def test_a_small_model_gets_its_values_and_others_their_bytes_by_column(monkeypatch, most, free):
    _, weight = operands((), 64, 128)
    size = cpu.decoded_nbytes(weight, "float32")
    assert size == 4 * 64 * 128
    monkeypatch.setattr(cpu, "MAX_DECODED_BYTES", int(most * size))
    monkeypatch.setattr(cpu, "available_memory", lambda: free and int(free * size))
    added = cpu.add_copies_if_they_fit({"w": weight}, "float32")["w"]
    assert (added.decoded is not None) == (most == 1 and free != 1.9)
    assert (added.transposed is None) == (added.decoded is not None)


@pytest.mark.parametrize("transposed", [True, False])
def test_the_compiler_leaves_the_turns_to_all_cores(transposed):
    # A loop that XLA takes for small is a function of its own, which one core runs.
    x, weight = operands((1,), 2560, 2560)
    multiply = cpu.table_matmul if transposed else cpu.rows_matmul
    weight = cpu.add_transposed(weight) if transposed else weight
    program = jax.jit(multiply).lower(x, weight).compile().as_text()
    assert " while(" in program
    for name in re.findall(r"to_apply=(%\S+), .*xla_cpu_small_call", program):
        body = re.search(rf"^{re.escape(name)} .*?^}}", program, re.DOTALL | re.MULTILINE)[0]
        assert " while(" not in body


def test_rows_decoded_in_bfloat16_are_those_of_the_reference(monkeypatch):
    monkeypatch.setattr(rows_cpu, "has_bfloat16", lambda: True)
    x, weight = operands((5,), 256, 128, "bfloat16")
    exact = np.asarray(x, np.float64) @ np.asarray(dequantize(weight, "bfloat16"), np.float64).T
    y = np.asarray(cpu.rows_matmul(x, weight), np.float64)
    np.testing.assert_allclose(y, exact, rtol=2**-8, atol=1e-5 * np.abs(exact).max())


def test_the_gradient_of_rows_decoded_in_turns_is_that_of_the_whole_product():
    x, weight = operands((2, 3), 320, 128)
    dy = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, 320), np.float32))
    (dx,) = jax.vjp(lambda x: cpu.rows_matmul(x, weight), x)[1](dy)
    exact = np.asarray(dy, np.float64) @ np.asarray(dequantize(weight), np.float64)
    np.testing.assert_allclose(dx, exact, rtol=1e-5, atol=2e-6 * np.abs(exact).max())


def test_columns_are_added_to_linear_weights_alone():
    _, weight = operands((), 64, 128, double_quant=True)
    _, odd = operands((), 8, 100)
    tree = {
        "linear": weight,
        "odd": odd,
        "norm": jnp.zeros(3),
        "lora": LoRAWeight(weight, jnp.zeros((2, 128)), jnp.zeros((64, 2)), 1.0),
    }
    added = cpu.add_transposed(tree)
    assert added["linear"].transposed.packed.shape == (2, 32, 64)
    assert added["lora"].base.transposed is not None
    assert added["odd"].transposed is None and added["norm"] is tree["norm"]
    more = sum(x.nbytes for x in jax.tree.leaves(added)) - sum(
        x.nbytes for x in jax.tree.leaves(tree)
    )
    assert more == cpu.transposed_nbytes(tree)
    assert cpu.transposed_nbytes(added) == 0
    assert cpu.add_transposed(added)["linear"] is added["linear"]
    np.testing.assert_array_equal(dequantize(added["linear"]), dequantize(weight))


@pytest.mark.parametrize("free, added", [(None, True), (2, True), (1.9, False)])
def test_a_transposed_copy_is_added_where_half_of_the_free_memory_is_enough(
    monkeypatch, free, added
):
    _, weight = operands((), 64, 128)
    size = cpu.transposed_nbytes(weight)
    monkeypatch.setattr(cpu, "available_memory", lambda: free and int(free * size))
    assert (cpu.add_transposed_if_it_fits(weight).transposed is not None) == added
    assert weight.transposed is None


def test_forced_kernels_that_cannot_serve_say_why():
    x, weight = operands((5,), 64, 128)
    with pytest.raises(ValueError, match="'table_cpu' cannot serve: it takes up to 4 rows, not 5"):
        packed_matmul(x, [cpu.add_transposed(weight)], kernel="table_cpu")
    with pytest.raises(ValueError, match="'table_cpu' cannot serve: it needs a copy"):
        packed_matmul(x[:1], [weight], kernel="table_cpu")
    with pytest.raises(
        ValueError, match="'decoded_cpu' cannot serve: it needs the weights' values"
    ):
        packed_matmul(x, [weight], kernel="decoded_cpu")
    _, odd = operands((), 48, 128)
    with pytest.raises(ValueError, match="'rows_cpu' cannot serve: 48 rows are not a multiple"):
        packed_matmul(x, [odd], kernel="rows_cpu")
