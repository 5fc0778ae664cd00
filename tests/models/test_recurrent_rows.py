import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.config import preset
from griffin_jax.kernels.mosaic_gpu import backend
from griffin_jax.models import recurrent_rows
from griffin_jax.models.rglru import RecurrentBlock, RecurrentState
from griffin_jax.models.state import Timeline
from griffin_jax.quantization import quantize
from tests.kernels.mosaic import ON_HOPPER, compiled_for_h200, interpreter, no_races

HEADS, HALF = 2, jnp.bfloat16


def block(size):
    width = HEADS * size
    config = preset("tiny").replace(width=64, recurrence_width=width, num_heads=HEADS)
    return RecurrentBlock(config, dtype=HALF, param_dtype=HALF, kernel="reference")


def plain(size, params, *arguments):
    return block(size).apply({"params": params}, *arguments)


def operands(batch, size=64):
    width = HEADS * size
    random = np.random.default_rng(batch)

    def normal(*shape, scale=1.0, dtype=HALF):
        return jnp.asarray(scale * random.standard_normal(shape), dtype)

    def linear(out, width):
        return {"weight": normal(out, width, scale=width**-0.5), "bias": normal(out)}

    def gate():
        scale = size**-0.5
        return {"weight": normal(HEADS, size, size, scale=scale), "bias": normal(HEADS, size)}

    params = {
        "linear_x": linear(width, 64),
        "linear_y": linear(width, 64),
        "linear_out": linear(64, width),
        "conv_1d": {"weight": normal(4, width), "bias": normal(width)},
        "rg_lru": {"a_gate": gate(), "input_gate": gate(), "a_param": 3 * normal(width) - 4},
    }
    state = RecurrentState(normal(batch, width, dtype=jnp.float32), normal(batch, 3, width))
    # Beginnings of documents and rows of padding are among them.
    positions = jnp.asarray(np.arange(batch) % 6, jnp.int32)
    lengths = jnp.asarray(np.arange(batch) % 5 != 4, jnp.int32)
    timeline = Timeline(positions[:, None], lengths, positions)
    return params, normal(batch, 1, 64), state, timeline


def relative(found, wanted):
    found, wanted = (np.asarray(x, np.float32) for x in (found, wanted))
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def check(size, *arguments):
    definition = functools.partial(plain, size)
    with no_races():
        out, state = recurrent_rows.recurrent_rows(definition, *arguments, interpret=interpreter())
    wanted, after = definition(*arguments)
    real = np.asarray(arguments[-1].lengths) > 0
    assert relative(out[real], wanted[real]) < 8e-3
    assert relative(state.hidden, after.hidden) < 8e-3
    np.testing.assert_array_equal(
        np.asarray(state.conv, np.float32), np.asarray(after.conv, np.float32)
    )


# Fewer than 8 rows are read beyond their end, which a GPU fills with zeros. The blocks of a head of
# 128 channels are a cluster, where the rows of a block are all there are; JAX 0.10 interprets none.
CASES = [(16, 64), (128, 64)]
if jax.__version_info__ >= (0, 11):
    CASES.append((16, 128))
if ON_HOPPER:
    CASES += [(1, 64), (4, 256), (64, 256), (128, 128)]


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "size"), CASES)
def test_one_launch_equals_the_layers(batch, size):
    check(size, *operands(batch, size))


@pytest.mark.slow
def test_a_packed_weight_behind_it_reads_what_it_writes():
    params, *arguments = operands(128, 128)
    params["linear_out"]["weight"] = quantize(params["linear_out"]["weight"].astype(jnp.float32))
    check(128, params, *arguments)


@pytest.mark.slow
def test_its_gradient_is_that_of_the_layers(monkeypatch):
    arguments = operands(8)
    definition = functools.partial(plain, 64)
    monkeypatch.setattr(recurrent_rows, "_run", lambda *arguments: definition(*arguments[:-1]))

    def gradient(function):
        def loss(params, x):
            out, state = function(params, x, *arguments[2:])
            return (out.astype(jnp.float32) ** 2).sum() + state.hidden.sum()

        return jax.grad(loss, argnums=(0, 1))(*arguments[:2])

    found = gradient(functools.partial(recurrent_rows.recurrent_rows, definition))
    for one, other in zip(*map(jax.tree.leaves, (found, gradient(definition))), strict=True):
        assert relative(one, other) < 1e-2


def test_what_is_not_served_is_told(monkeypatch):
    params, x, state, timeline = operands(16)

    def unsupported(params, x, state, timeline=timeline):
        return recurrent_rows.unsupported_reason(params, x, state, timeline)

    assert ON_HOPPER or "it needs a Hopper GPU" in unsupported(params, x, state)
    monkeypatch.setattr(backend, "missing", lambda: None)
    assert unsupported(params, x, state) is None
    later = timeline.replace(open=True)
    assert unsupported(params, x, state, later) == "which tokens count is not known yet"
    wide = jnp.concatenate([x, x], axis=1)
    assert unsupported(params, wide, state) == "2 tokens are more than one"
    assert unsupported(params, x[:1], state) is None
    assert unsupported(params, x[:5], state) is None
    rows = jnp.concatenate([x] * 5)
    assert "17 rows are no power" in unsupported(params, rows[:17], state)
    assert "80 rows are no multiple of 64" in unsupported(params, rows, state)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    assert "not bfloat16, float32" in unsupported(single, x, state)


@pytest.mark.skipif(ON_HOPPER, reason="this is a Hopper GPU")
def test_forced_elsewhere_the_kernel_refuses():
    params, *arguments = operands(16)
    forced = block(64).clone(kernel="mosaic_gpu")
    with pytest.raises(ValueError, match="recurrent_step: kernel 'mosaic_gpu' cannot serve: it ne"):
        forced.apply({"params": params}, *arguments)


def test_compiled_for_an_h200_it_spills_nothing():
    kernels = compiled_for_h200("""
import functools
from griffin_jax.kernels.mosaic_gpu.recurrent_kernel import recurrent_step

def half(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

gate = [half(16, 256, 256), half(16, 256)]
for rows, operand in ((64, True), (256, False)):
    build(
        functools.partial(recurrent_step, operand=operand),
        half(rows, 4096),
        half(rows, 4096),
        [half(4096), half(4096)],
        half(rows, 3, 4096),
        jax.ShapeDtypeStruct((rows, 4096), jnp.float32),
        [half(4, 4096), half(4096)],
        [gate, gate],
        half(4096),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
""")
    assert len(kernels) == 2
    for kernel in kernels:
        assert kernel["spills"] == 0
        assert not kernel["serialized"]
