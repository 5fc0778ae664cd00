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
        (8, jnp.float32, 1e-6),
        (21, jnp.float32, 1e-6),
        (24, jnp.bfloat16, 5e-3),
        (128, jnp.float32, 1e-6),  # a tile
        (300, jnp.float32, 1e-6),  # two, and one that is not full
        (300, jnp.bfloat16, 5e-3),
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
    with pytest.raises(
        ValueError, match="no kernel 'fast'; there are pallas_gpu, pallas_tpu, reference"
    ):
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
