import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.config import preset
from griffin_jax.kernels.mosaic_gpu import backend
from griffin_jax.kernels.mosaic_gpu.operand import operand as operand_of
from griffin_jax.kernels.rotary import rotate
from griffin_jax.layer_of import LayerOf
from griffin_jax.models import attention_rows
from griffin_jax.models.attention import AttentionState, attend_and_write
from griffin_jax.models.state import Timeline
from tests.kernels.mosaic import ON_HOPPER, compiled_for_h200, interpreter, no_races

SIZE = 128


def operands(heads, slots, starts, size=SIZE):
    """Rows of which some begin a document, are in the midst of one, or are padding."""
    batch = len(starts)
    random = np.random.default_rng(slots)

    def normal(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.bfloat16)

    q, k, v = normal(batch, 1, heads, size), normal(batch, 1, 1, size), normal(batch, 1, 1, size)
    state = AttentionState(normal(batch, slots, 1, size), normal(batch, slots, 1, size))
    start = np.asarray(starts, np.int32)
    positions = np.select([np.arange(batch) % 5 == 3, np.arange(batch) % 5 == 4], [0, 3], start)
    lengths = np.arange(batch) % 7 != 5
    timeline = Timeline(*(jnp.asarray(x, jnp.int32) for x in (positions[:, None], lengths, start)))
    return q, k, v, state, timeline


def check(arguments, reach):
    """Against the definition in float32; what the rings hold afterward is the same to the bit."""
    plain = functools.partial(attend_and_write, reach)
    with no_races():
        out, state = attention_rows.attention_rows(
            plain, *arguments, reach=reach, interpret=interpreter()
        )
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.ndim > 2 else x, arguments)
    with jax.default_matmul_precision("highest"):
        wanted, _ = plain(*wide)
    real = np.asarray(arguments[-1].lengths) > 0
    found, wanted = (np.asarray(x, np.float32)[real] for x in (out, wanted))
    assert out.dtype == jnp.bfloat16
    assert np.linalg.norm(found - wanted) < 4e-3 * np.linalg.norm(wanted)
    _, after = plain(*arguments)
    for ring, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(*(np.asarray(x, np.float32) for x in (ring, wanted)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "slots", "reach", "starts"),
    [
        # Nothing read yet, a part of the ring, the end of a piece, the end of the ring, beyond it.
        (8, 128, 128, [0, 70, 300, 5, 200, 64, 128, 127]),
        (10, 64, 40, [63, 64, 65]),
        (16, 192, None, [100, 500]),
    ],
)
def test_one_launch_equals_the_definition(heads, slots, reach, starts):
    check(operands(heads, slots, starts), reach)


@pytest.mark.slow
@pytest.mark.parametrize("operand", [False, True])
def test_between_its_products_a_block_is_the_layers(operand):
    """Biases, rotation, attention and the order that the next product reads."""
    heads, size = 2, 256
    config = preset("tiny").replace(num_heads=heads, head_size=size, attention_window=64)
    q, k, v, state, timeline = operands(heads, 64, [70, 5], size)
    products = [x.reshape(len(x), -1) for x in (q, k, v)]
    bias = jnp.linspace(-1, 1, heads * size, dtype=jnp.bfloat16)
    params = {"q_proj": {"bias": bias}, "k_proj": {"bias": bias[:size]}, "v_proj": {}}
    with no_races():
        z, after = attention_rows.ATTENTION_ROWS.between(
            *(config, params, products, state, timeline), operand=operand, interpret=interpreter()
        )
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    wide[0] += bias.astype(jnp.float32).reshape(1, 1, heads, size)
    wide[1] += bias[:size].astype(jnp.float32).reshape(1, 1, 1, size)
    wide[:2] = [rotate(x, timeline.positions, config.rope_base, 0.5) for x in wide[:2]]
    rings = jax.tree.map(lambda ring: ring.astype(jnp.float32), state)
    with jax.default_matmul_precision("highest"):
        wanted, rings = attend_and_write(config.attention_reach, *wide, rings, timeline)
    wanted = wanted.reshape(2, -1)
    wanted = operand_of(wanted) if operand else wanted
    assert (z.shape, z.dtype) == (wanted.shape, wanted.dtype if operand else jnp.bfloat16)
    z, wanted = (np.asarray(x[:2], np.float64) for x in (z, wanted))
    assert np.linalg.norm(z - wanted) < 6e-3 * np.linalg.norm(wanted)
    for ring, exact in zip(*map(jax.tree.leaves, (after, rings)), strict=True):
        ring, exact = (np.asarray(x, np.float64) for x in (ring, exact))
        assert np.linalg.norm(ring - exact) < 4e-3 * np.linalg.norm(exact)


@pytest.mark.skipif(not ON_HOPPER, reason="takes a GPU")
@pytest.mark.parametrize(("batch", "slots"), [(1, 2048), (4, 2048), (16, 2048), (150, 192)])
def test_heads_of_a_published_model(batch, slots):
    starts = np.random.default_rng(batch).integers(0, 3 * slots, batch)
    check(operands(16, slots, starts, size=256), slots)


@pytest.mark.slow
def test_its_gradient_is_that_of_the_definition(monkeypatch):
    arguments = operands(8, 64, [10, 80])
    plain = functools.partial(attend_and_write, 64)
    monkeypatch.setattr(attention_rows, "_run", lambda *arguments: plain(*arguments[:-2]))

    def gradient(function):
        def loss(q, k, v):
            out, state = function(q, k, v, *arguments[3:])
            return (out.astype(jnp.float32) ** 2).sum() + state.keys.astype(jnp.float32).sum()

        return jax.grad(loss, argnums=(0, 1, 2))(*arguments[:3])

    found = gradient(functools.partial(attention_rows.attention_rows, plain, reach=64))
    for one, other in zip(found, gradient(plain), strict=True):
        np.testing.assert_array_equal(*(np.asarray(x, np.float32) for x in (one, other)))


def test_what_is_not_served_is_told(monkeypatch):
    q, k, _, state, timeline = operands(8, 64, [10, 80])

    def unsupported(q, k, state, timeline=timeline):
        return attention_rows.unsupported_reason(q, k, state, timeline)

    assert ON_HOPPER or "it needs a Hopper GPU" in unsupported(q, k, state)
    monkeypatch.setattr(backend, "missing", lambda: None)
    assert unsupported(q, k, state) is None
    later = timeline.replace(open=True)
    assert unsupported(q, k, state, later) == "which tokens count is not known yet"
    assert unsupported(q[:, [0, 0]], k, state) == "2 tokens are more than one"
    assert unsupported(q, k, LayerOf(state, 0)) == "stacked layers"
    assert "not in float32" in unsupported(q.astype(jnp.float32), k, state)
    single = jax.tree.map(lambda ring: ring.astype(jnp.float32), state)
    assert "rings in float32" in unsupported(q, k, single)
    assert "2 heads of keys for 8" in unsupported(q, k[:, :, [0, 0]], state)
    assert unsupported(q[..., :64], k, state) == "heads of 64 (needs 128 or 256)"
    short = jax.tree.map(lambda ring: ring[:, :50], state)
    assert "a ring of 50 slots" in unsupported(q, k, short)


def test_rings_are_shared_out_to_all_of_the_chip():
    from griffin_jax.kernels.mosaic_gpu.attention_kernel import parts_of

    assert [parts_of(rows, 2048) for rows in (1, 4, 16, 64, 256)] == [16, 16, 8, 2, 1]
    assert [parts_of(rows, 192) for rows in (1, 60, 100)] == [3, 2, 1]


def test_compiled_for_an_h200_it_spills_nothing():
    [kernel] = compiled_for_h200("""
import functools
from griffin_jax.kernels.mosaic_gpu.attention_kernel import attend_to_rings

half = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
number = jax.ShapeDtypeStruct((16,), jnp.int32)
build(
    functools.partial(attend_to_rings, parts=8),
    half(16, 24, 256),
    half(16, 2048, 256),
    half(16, 2048, 256),
    *[number] * 3,
)
""")
    assert kernel["registers"] <= 255
    assert kernel["spills"] == 0
    assert not kernel["serialized"]
