import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.kernels.mosaic_gpu import backend
from griffin_jax.models import recurrent_rows
from griffin_jax.models.rglru import RGLRU, Conv1D, RecurrentState, convolve_and_recur
from griffin_jax.models.state import Timeline
from tests.kernels.mosaic import ON_HOPPER, compiled_for_h200, interpreter, no_races

HEADS, SIZE = 2, 64
PLAIN = functools.partial(
    convolve_and_recur,
    Conv1D(4, jnp.bfloat16),
    RGLRU(HEADS, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16),
)


def operands(batch):
    width, half = HEADS * SIZE, jnp.bfloat16
    random = np.random.default_rng(batch)

    def normal(*shape, scale=1.0, dtype=half):
        return jnp.asarray(scale * random.standard_normal(shape), dtype)

    def gate():
        return {"weight": normal(HEADS, SIZE, SIZE, scale=0.2), "bias": normal(HEADS, SIZE)}

    params = {
        "conv_1d": {"weight": normal(4, width), "bias": normal(width)},
        "rg_lru": {"a_gate": gate(), "input_gate": gate(), "a_param": normal(width) - 4},
    }
    state = RecurrentState(normal(batch, width, dtype=jnp.float32), normal(batch, 3, width))
    # Beginnings of documents and rows of padding are among them.
    positions = jnp.asarray(np.arange(batch) % 6, jnp.int32)
    lengths = jnp.asarray(np.arange(batch) % 5 != 4, jnp.int32)
    timeline = Timeline(positions[:, None], lengths, positions)
    return params, normal(batch, 1, width), normal(batch, 1, width), state, timeline


def relative(found, wanted):
    found, wanted = (np.asarray(x, np.float32) for x in (found, wanted))
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


# Fewer than 8 rows are read beyond their end, which a GPU fills with zeros.
@pytest.mark.parametrize("batch", [1, 4, 16, 128] if ON_HOPPER else [16, 128])
def test_one_launch_equals_the_layers(batch):
    arguments = operands(batch)
    with no_races():
        z, state = recurrent_rows.recurrent_rows(PLAIN, *arguments, interpret=interpreter())
    wanted, after = PLAIN(*arguments)
    real = np.asarray(arguments[-1].lengths) > 0
    assert relative(z[real], wanted[real]) < 8e-3
    assert relative(state.hidden, after.hidden) < 8e-3
    np.testing.assert_array_equal(
        np.asarray(state.conv, np.float32), np.asarray(after.conv, np.float32)
    )


def test_its_gradient_is_that_of_the_layers(monkeypatch):
    arguments = operands(8)
    monkeypatch.setattr(recurrent_rows, "_run", lambda *arguments: PLAIN(*arguments[:-1]))

    def gradient(function):
        def loss(params, y):
            z, state = function(params, y, *arguments[2:])
            return (z.astype(jnp.float32) ** 2).sum() + state.hidden.sum()

        return jax.grad(loss, argnums=(0, 1))(*arguments[:2])

    found = gradient(functools.partial(recurrent_rows.recurrent_rows, PLAIN))
    for one, other in zip(*map(jax.tree.leaves, (found, gradient(PLAIN))), strict=True):
        assert relative(one, other) < 1e-2


def test_what_is_not_served_is_told(monkeypatch):
    params, _, u, state, _ = operands(16)
    assert ON_HOPPER or "it needs a Hopper GPU" in recurrent_rows.unsupported_reason(
        params, u, state
    )
    monkeypatch.setattr(backend, "missing", lambda: None)
    assert recurrent_rows.unsupported_reason(params, u, state) is None
    wide = jnp.concatenate([u, u], axis=1)
    assert recurrent_rows.unsupported_reason(params, wide, state) == "2 tokens are more than one"
    assert "15 rows are fewer than 16" in recurrent_rows.unsupported_reason(params, u[:15], state)
    rows = jnp.concatenate([u] * 5)
    assert "17 rows are no power" in recurrent_rows.unsupported_reason(params, rows[:17], state)
    assert "80 rows are no multiple of 64" in recurrent_rows.unsupported_reason(params, rows, state)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    assert "not bfloat16, float32" in recurrent_rows.unsupported_reason(single, u, state)


def test_compiled_for_an_h200_it_spills_nothing():
    [kernel] = compiled_for_h200("""
from griffin_jax.kernels.mosaic_gpu.recurrent_kernel import recurrent_step

def half(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

gate = [half(16, 256, 256), half(16, 256)]
build(
    recurrent_step,
    half(64, 4096),
    half(64, 4096),
    half(64, 3, 4096),
    jax.ShapeDtypeStruct((64, 4096), jnp.float32),
    [half(4, 4096), half(4096)],
    [gate, gate],
    half(4096),
    jax.ShapeDtypeStruct((64,), jnp.int32),
)
""")
    assert kernel["spills"] == 0
    assert not kernel["serialized"]
