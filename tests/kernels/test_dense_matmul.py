"""Products with plain weights, on a CPU in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax import host
from griffin_jax.kernels import choice
from griffin_jax.kernels import dense_matmul as module
from griffin_jax.kernels.dense_matmul import (
    bfloat16_matmul,
    block_diagonal_matmul,
    dense_matmul,
    dense_matmul_reference,
)


def operands(rows, dtype, out=48, width=320):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((*rows, width)), dtype)
    return x, jnp.asarray(random.standard_normal((out, width)), jnp.bfloat16)


@pytest.mark.parametrize("rows", [(), (1,), (1, 1), (2, 3), (40,)])
def test_a_float32_row_is_not_rounded_for_a_bfloat16_weight(rows):
    x, weight = operands(rows, "float32")
    y = bfloat16_matmul(x, weight, jnp.dtype("float32"))
    exact = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    # Rounding the row to bfloat16 would cost 1e-3.
    assert y.dtype == jnp.float32 and y.shape == exact.shape
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=2e-6 * np.abs(exact).max())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("rows", [(), (1,), (2, 3)])
def test_a_bfloat16_row_is_multiplied_in_float32(rows, dtype):
    x, weight = operands(rows, "bfloat16")
    y = bfloat16_matmul(x, weight, jnp.dtype(dtype))
    exact = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    assert y.dtype == dtype
    rtol = 2**-8 if dtype == "bfloat16" else 1e-5
    y = np.asarray(y, np.float64)
    np.testing.assert_allclose(y, exact, rtol=rtol, atol=1e-6 * np.abs(exact).max())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gradients_are_those_of_the_reference(dtype):
    x, weight = operands((2, 3), dtype)

    def loss(product):
        return lambda x, w: jnp.sum(jnp.sin(product(x, w, x.dtype).astype(jnp.float32)))

    found = jax.grad(loss(bfloat16_matmul), (0, 1))(x, weight)
    wanted = jax.grad(loss(dense_matmul_reference), (0, 1))(x, weight)
    for got, want, like in zip(found, wanted, (x, weight), strict=True):
        assert got.dtype == like.dtype
        got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
        np.testing.assert_allclose(got, want, rtol=0.02, atol=0.02 * np.abs(want).max())


@pytest.mark.parametrize(
    "flags, served",
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_tile", True),
        ("flags\t\t: fpu avx512f avx2", False),
        ("Features\t: fp asimd bf16", True),
        ("model name\t: avx512_bf16", False),
    ],
)
def test_a_processor_is_asked_for_its_bfloat16_instructions(tmp_path, monkeypatch, flags, served):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\n{flags}\n")
    monkeypatch.setattr(host, "Path", lambda path: file)
    assert module.has_bfloat16.__wrapped__() is served


def test_a_forced_kernel_that_cannot_serve_says_why(monkeypatch):
    monkeypatch.setattr(choice, "platform", lambda: "cpu")
    x, weight = operands((2,), "float32")
    with pytest.raises(ValueError, match=r"'bfloat16_cpu' cannot serve: .*not float32 by float32"):
        dense_matmul(x, weight.astype(jnp.float32), kernel="bfloat16_cpu")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it needs a CPU")
@pytest.mark.parametrize("kernel, dtype", [("bfloat16_cpu", "bfloat16"), ("reference", "float32")])
@pytest.mark.parametrize("rows", [(1, 2), (2, 3), (7,)])
def test_each_block_is_multiplied_with_its_own_weight(monkeypatch, rows, kernel, dtype):
    monkeypatch.setattr(module, "has_bfloat16", lambda: True)
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((*rows, 3, 32)), dtype)
    weight = jnp.asarray(random.standard_normal((3, 32, 16)), dtype)
    dy = jnp.asarray(random.standard_normal((*rows, 3, 16)), dtype)
    y, pull_back = jax.vjp(lambda *args: block_diagonal_matmul(*args, kernel=kernel), x, weight)
    x, weight, exact_dy = (np.asarray(a, np.float64) for a in (x, weight, dy))
    exact = [
        np.einsum("...ni,nij->...nj", x, weight),
        np.einsum("...nj,nij->...ni", exact_dy, weight),
        np.einsum("rni,rnj->nij", x.reshape(-1, 3, 32), exact_dy.reshape(-1, 3, 16)),
    ]
    for got, wanted in zip((y, *pull_back(dy)), exact, strict=True):
        assert got.dtype == dtype
        got, rtol = np.asarray(got, np.float64), 2**-8 if dtype == "bfloat16" else 1e-5
        np.testing.assert_allclose(got, wanted, rtol=rtol, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it needs a CPU")
def test_blocks_of_one_row_or_in_float32_are_left_to_xla(monkeypatch):
    monkeypatch.setattr(module, "has_bfloat16", lambda: True)
    weight = jnp.zeros((3, 8, 4), jnp.bfloat16)
    for x in (jnp.zeros((1, 1, 3, 8), jnp.bfloat16), jnp.zeros((2, 3, 8))):
        with pytest.raises(ValueError, match="two rows or more of bfloat16"):
            block_diagonal_matmul(x, weight, kernel="bfloat16_cpu")
        assert block_diagonal_matmul(x, weight).dtype == x.dtype
