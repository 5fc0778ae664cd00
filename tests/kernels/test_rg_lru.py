"""The fused kernel equals the definition, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels import choice, rg_lru_pallas_gpu
from griffin_jax.kernels.rg_lru import rg_lru, rg_lru_reference
from tests.kernels.lowering import for_gpu

NAMES = ["h", "last", "dx", "dgate_x", "dgate_a", "da_param", "dhidden"]


def draw(time, dtype, rows=2, width=64):
    """Arguments in which the second row restarts on the way and ends in padding."""
    keys = jax.random.split(jax.random.key(time), 6)
    x, gate_x, gate_a = (2 * jax.random.normal(key, (rows, time, width), dtype) for key in keys[:3])
    a_param = jax.random.normal(keys[3], (width,))
    hidden = jax.random.normal(keys[4], (rows, width))
    positions = np.tile(np.arange(5, time + 5), (rows, 1))
    positions[1, 3:] = np.arange(time - 3)
    lengths = np.array([time, time - 2])
    return (x, gate_x, gate_a, a_param, hidden), jnp.asarray(positions), jnp.asarray(lengths)


@pytest.mark.parametrize(
    "time, dtype, tolerance",
    # The backward pass reads the state back in the dtype of the inputs.
    [
        pytest.param(8, jnp.float32, 1e-6, marks=pytest.mark.slow),
        pytest.param(21, jnp.float32, 1e-6, marks=pytest.mark.slow),
        pytest.param(24, jnp.bfloat16, 5e-3, marks=pytest.mark.slow),
        pytest.param(128, jnp.float32, 1e-6, marks=pytest.mark.slow),  # a tile
        (300, jnp.float32, 1e-6),  # two, and one that is not full
        pytest.param(300, jnp.bfloat16, 5e-3, marks=pytest.mark.slow),
    ],
)
def test_the_fused_kernel_equals_the_definition_with_gradients(time, dtype, tolerance):
    arguments, positions, lengths = draw(time, dtype)

    def run(function, **options):
        def call(*arguments):
            return function(*arguments, positions, lengths, **options)

        outputs, pullback = jax.vjp(call, *arguments)
        return (*outputs, *pullback(jax.tree.map(jnp.cos, outputs)))

    wanted = run(rg_lru_reference)
    got = run(rg_lru_pallas_gpu.rg_lru, interpret=True)
    for name, a, b in zip(NAMES, wanted, got, strict=True):
        a, b = np.float64(a), np.float64(b)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(a), name


def runs_of(arguments, count=3):
    """Arguments of several runs, each of whose own parameters, and the same hidden state."""
    *own, hidden = arguments
    return [jnp.stack([x * (1 + i / 8) for i in range(count)]) for x in own], hidden


def mapped_gradient(positions, lengths, **options):
    """The outputs and gradients of mapped runs."""

    def one(x, gate_x, gate_a, a_param, hidden):
        arguments = x, gate_x, gate_a, a_param, hidden

        def call(*arguments):
            return rg_lru_pallas_gpu.rg_lru(*arguments, positions, lengths, **options)

        outputs, pullback = jax.vjp(call, *arguments)
        return (*outputs, *pullback(jax.tree.map(jnp.cos, outputs)))

    return one


@pytest.mark.slow
def test_mapped_over_runs_the_fused_kernel_is_each_run_alone():
    arguments, positions, lengths = draw(130, jnp.float32)
    own, hidden = runs_of(arguments)
    one = mapped_gradient(positions, lengths, interpret=True)
    got = jax.vmap(one, in_axes=(0, 0, 0, 0, None))(*own, hidden)
    for i in range(3):
        alone = one(*(x[i] for x in own), hidden)
        for name, a, b in zip(NAMES, alone, got, strict=True):
            np.testing.assert_allclose(b[i], a, atol=1e-6, rtol=1e-6, err_msg=name)


@pytest.mark.slow
def test_mapped_twice_with_shared_parameters_each_gradient_is_its_own():
    arguments, positions, lengths = draw(24, jnp.float32)
    own, hidden = runs_of(arguments)
    x, gate_x, gate_a, a_param = own
    one = mapped_gradient(positions, lengths, interpret=True)

    def parts(v):  # each row of a run by itself
        return v.reshape(2, 1, *v.shape[1:])

    def run(x, gate_x, gate_a, a_param, hidden):
        def one(x, gate_x, gate_a, a_param, hidden, positions, lengths):
            gradient = mapped_gradient(positions, lengths, interpret=True)
            return gradient(x, gate_x, gate_a, a_param, hidden)

        split = map(parts, (x, gate_x, gate_a))
        arguments = *split, a_param, parts(hidden), parts(positions), parts(lengths)
        return jax.vmap(one, in_axes=(0, 0, 0, None, 0, 0, 0))(*arguments)

    got = jax.vmap(run, in_axes=(0, 0, 0, 0, None))(x, gate_x, gate_a, a_param, hidden)
    for i in range(3):
        alone = one(x[i], gate_x[i], gate_a[i], a_param[i], hidden)
        for name, a, b in zip(NAMES, alone, got, strict=True):
            b = b[i].sum(axis=0) if name == "da_param" else b[i].reshape(a.shape)
            np.testing.assert_allclose(b, a, atol=2e-6, rtol=2e-6, err_msg=name)


def test_mapped_over_runs_there_are_as_many_launches_as_for_one():
    arguments, positions, lengths = draw(24, jnp.bfloat16)
    own, hidden = runs_of(arguments)
    mapped = jax.vmap(mapped_gradient(positions, lengths), in_axes=(0, 0, 0, 0, None))
    assert for_gpu(mapped, *own, hidden).count("custom_call @__gpu$xla.gpu.triton") == 2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_fused_kernel_compiles_to_triton(dtype):
    arguments, positions, lengths = draw(24, dtype)

    def gradient(*arguments):
        return jax.grad(
            lambda *a: rg_lru_pallas_gpu.rg_lru(*a, positions, lengths)[0].astype("f4").sum()
        )(*arguments)

    assert for_gpu(gradient, *arguments).count("custom_call @__gpu$xla.gpu.triton") == 2


def test_a_forced_kernel_that_cannot_serve_raises(monkeypatch):
    monkeypatch.setattr(choice, "platform", lambda: "cpu")
    arguments, positions, lengths = draw(8, jnp.float32)
    with pytest.raises(ValueError, match="needs a GPU, and this is a CPU"):
        rg_lru(*arguments, positions, lengths, kernel="pallas_gpu")
    names = "mosaic_gpu, pallas_gpu, pallas_tpu, reference"
    with pytest.raises(ValueError, match=f"no kernel 'fast'; there are {names}"):
        rg_lru(*arguments, positions, lengths, kernel="fast")


@pytest.mark.parametrize(
    "shape, reason",
    [
        ((1024, 64, 100), "recurrence width 100 is not a multiple of"),
        ((1024, 1, 64), "1 tokens are fewer than"),
        ((1, 64, 64), "do not fill a GPU"),
    ],
)
def test_the_fused_kernel_says_which_shapes_it_leaves_to_others(shape, reason):
    assert reason in rg_lru_pallas_gpu.unsupported_reason(shape)
