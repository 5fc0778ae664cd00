"""The one-pass kernel for GPUs equals one step after another, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels import choice
from griffin_jax.kernels import linear_recurrence_pallas_gpu as kernel
from griffin_jax.kernels.linear_recurrence import linear_recurrence, linear_recurrence_reference
from griffin_jax.kernels.time_chunks_gpu import Chunks
from tests.kernels.lowering import for_gpu


def draw(time, rows=2, width=64):
    """x, a, h0 with some resets (a = 0) and some steps of padding (a = 1, x = 0)."""
    generator = np.random.default_rng(time)
    x = generator.standard_normal((rows, time, width)).astype(np.float32)
    a = generator.uniform(0.8, 0.999, x.shape).astype(np.float32)
    a[:, time // 3 :: 101] = 0
    x[:, time // 2 :: 97], a[:, time // 2 :: 97] = 0, 1
    return x, a, generator.standard_normal((rows, width)).astype(np.float32)


# A group; a chunk, and a step less or more; several with a remainder.
@pytest.mark.parametrize(
    "time", [16, *(pytest.param(n, marks=pytest.mark.slow) for n in (127, 128, 129)), 300]
)
def test_equals_one_step_after_another_with_gradients(time):
    x, a, h0 = draw(time)
    dh = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    h = kernel.forward(x, a, h0, interpret=True)
    got = h, *kernel.backward(a, h0, h, dh, interpret=True)
    expected, pullback = jax.vjp(linear_recurrence_reference, x, a, h0)
    for name, g, wanted in zip(["h", "x", "a", "h0"], got, (expected, *pullback(dh)), strict=True):
        tolerance = 1e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(g, wanted, atol=tolerance, rtol=1e-5, err_msg=name)


def test_mapped_over_runs_each_is_the_run_alone():
    x, a, h0 = draw(130)
    dh = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)

    def run(x, h0):
        h = kernel.forward(x, a, h0, interpret=True)
        return h, *kernel.backward(a, h0, h, dh, interpret=True)

    xs, h0s = np.stack([x, -2 * x, x[:, ::-1]]), np.stack([h0, 3 * h0, -h0])
    got = jax.vmap(run)(xs, h0s)
    for i in range(3):
        for name, g, wanted in zip(["h", "x", "a", "h0"], got, run(xs[i], h0s[i]), strict=True):
            np.testing.assert_allclose(g[i], wanted, atol=1e-6, rtol=1e-6, err_msg=name)


def test_a_zero_decay_forgets_everything_before_exactly():
    x, a, h0 = draw(300)
    a[:, 280] = 0
    h = kernel.forward(x, a, h0, interpret=True)
    changed = np.where(np.arange(300)[None, :, None] < 280, 7, x)
    other = kernel.forward(changed, a, -h0, interpret=True)
    np.testing.assert_array_equal(h[:, 280], x[:, 280])
    np.testing.assert_array_equal(h[:, 280:], other[:, 280:])


def test_nan_of_any_kind_stays_in_its_channel_and_is_not_waited_for():
    x, a, h0 = draw(300, rows=1)
    # The bits that stand for a state which is not there yet.
    h0[0, 3] = np.int32(-1).view(np.float32)
    x[0, 140, 5] = np.nan
    h = np.asarray(kernel.forward(x, np.where(a == 0, 0.5, a), h0, interpret=True))
    assert np.isnan(h[:, :, 3]).all() and np.isnan(h[:, 140:, 5]).all()
    assert np.isfinite(np.delete(h, [3, 5], axis=2)).all() and np.isfinite(h[:, :140, 5]).all()


@pytest.mark.parametrize("backward", [False, True])
def test_a_program_waits_only_for_those_with_lower_numbers(backward):
    chunks = Chunks((3, 80, 64), groups=4, steps=4, backward=backward)
    number = {
        tuple(map(int, chunks.place(jnp.int32(program)))): program
        for program in range(3 * chunks.count * 2)
    }
    assert len(number) == 3 * 5 * 2
    for (row, chunk, tile), program in number.items():
        before = row, chunk + (1 if backward else -1), tile
        assert number.get(before, -1) < program


def test_rows_may_be_mapped():
    x, a, h0 = draw(129, rows=3)
    mapped = jax.vmap(lambda *one: kernel.forward(*one, interpret=True))
    h = mapped(x[:, None], a[:, None], h0[:, None])[:, 0]
    np.testing.assert_array_equal(h, kernel.forward(x, a, h0, interpret=True))


def test_both_passes_compile_to_one_kernel_of_triton_each():
    x, a, h0 = draw(129)
    assert for_gpu(kernel.forward, x, a, h0).count("custom_call @__gpu$xla.gpu.triton") == 1
    text = for_gpu(kernel.backward, a, h0, x, x)
    assert text.count("custom_call @__gpu$xla.gpu.triton") == 1


@pytest.mark.parametrize(
    "shape, dtype, reason",
    [
        ((1024, 64, 100), "float32", "recurrence width 100 is not a multiple of 32"),
        ((1024, 15, 64), "float32", "15 tokens are fewer than 16"),
        ((1, 64, 64), "float32", "do not fill a GPU"),
        ((8, 64, 64), "bfloat16", "the inputs are bfloat16, not float32"),
    ],
)
def test_says_which_inputs_it_leaves_to_others(shape, dtype, reason):
    assert reason in kernel.unsupported_reason(shape, jnp.dtype(dtype))
    assert kernel.unsupported_reason((1, 64, 512), jnp.dtype("float32")) is None


def test_forced_where_there_is_no_gpu_raises(monkeypatch):
    monkeypatch.setattr(choice, "platform", lambda: "cpu")
    with pytest.raises(ValueError, match="needs a GPU, and this is a CPU"):
        linear_recurrence(*draw(128), kernel="pallas_gpu")
