import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from griffin_jax.config import preset
from griffin_jax.kernels import choice
from griffin_jax.kernels import dense_matmul_mosaic_gpu as dense
from griffin_jax.kernels import packed_matmul_mosaic_gpu as mosaic
from griffin_jax.kernels.mosaic_gpu import backend
from griffin_jax.kernels.mosaic_gpu.operand import DIVISOR, operand, reorder
from griffin_jax.layer_of import LayerOf
from griffin_jax.models import Griffin, init_params, init_state, residual_rows
from griffin_jax.models.blocks import MLPBlock, ResidualBlock, block_of
from griffin_jax.models.residual_rows import ResidualStream, added_up
from griffin_jax.models.state import Timeline
from griffin_jax.quantization import dequantize, quantize
from griffin_jax.quantization.tensor import is_packed
from tests.kernels.mosaic import ON_HOPPER, interpreter, no_races

HALF = jnp.bfloat16
CONFIG = preset("tiny").replace(
    width=512,
    mlp_width=256,
    num_heads=4,
    recurrence_width=256,
    head_size=256,
    attention_window=64,
    num_layers=3,
    vocab_size=64,
)


@functools.cache
def parameters(packed):
    """A model's, whose norms and biases are not zeros."""
    tree = jax.jit(functools.partial(init_params, CONFIG))(jax.random.key(0))
    flat = traverse_util.flatten_dict(tree)
    random = np.random.default_rng(1)
    for path, leaf in flat.items():
        if path[-1] in ("scale", "bias"):
            flat[path] = leaf + 0.3 * random.standard_normal(leaf.shape, np.float32)
        linear = path[-1] == "weight" and ("proj" in path[-2] or "linear" in path[-2])
        if packed and linear:
            flat[path] = quantize(leaf)
        else:
            flat[path] = flat[path].astype(HALF)
    return traverse_util.unflatten_dict(flat)


def single(tree):
    """The same in float32, 4-bit weights decoded."""

    def widen(x):
        if is_packed(x):
            return dequantize(x, jnp.float32)
        return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(widen, tree, is_leaf=is_packed)


def operands(rows, kind, parts=2):
    """A stream that is not added up, and a state in the midst of documents."""
    random = np.random.default_rng(rows)

    def normal(*shape, dtype=HALF):
        return jnp.asarray(random.standard_normal(shape, np.float32), dtype)

    x = normal(rows, 1, CONFIG.width)
    if parts:
        added = normal(parts, rows + 3, CONFIG.width, dtype=jnp.float32)
        x = ResidualStream(x, added, normal(CONFIG.width))
    state = init_state(CONFIG, rows, HALF).blocks[CONFIG.block_types.index(kind)]
    state = jax.tree.map(lambda x: normal(*x.shape, dtype=x.dtype), state)
    positions = jnp.asarray(np.arange(rows) * 37 % 90, jnp.int32)
    return x, state, Timeline(positions[:, None], jnp.ones(rows, jnp.int32), positions)


def plainly(kind, params, x, *arguments, dtype=HALF):
    layers = ResidualBlock(CONFIG, kind, dtype=dtype, param_dtype=dtype, kernel="reference")
    return layers.apply({"params": params}, x, *arguments)


def by_rows(kind, params, *arguments, interpret=False):
    block, name = block_of(kind), f"{kind}_block"
    reference = functools.partial(plainly, kind)

    def mixing(params, *arguments):
        return block(CONFIG, HALF, HALF).apply({"params": params}, *arguments)

    def mlp(params, x):
        options = {"use_bias": True, "out_init_scale": 1.0, "dtype": HALF}
        layers = MLPBlock(CONFIG.width, CONFIG.mlp_width, kernel="reference", **options)
        return layers.apply({"params": params}, x)

    return residual_rows.residual_rows(
        *(CONFIG, block.rows, name, reference, (mixing, mlp), params, *arguments),
        interpret=interpret,
    )


def error(found, wanted):
    found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


@pytest.fixture
def plain_products(monkeypatch):
    """Products in two parts that no kernel computes, as those have tests of their own."""

    def in_parts(x, weight):
        halves = zip(
            *(jnp.split(y.astype(jnp.float32), 2, axis=1) for y in (x, weight)), strict=True
        )
        return jnp.stack([jnp.dot(a, b.T, precision="highest") for a, b in halves])

    def gated(products, biases, dtype):
        gate, up = (
            y.sum(axis=0) + b.astype(y.dtype)[None] for y, b in zip(products, biases, strict=True)
        )
        return (jax.nn.gelu(gate) * up).astype(dtype)

    def packed(x, weights, *_, **__):
        return [DIVISOR * in_parts(x, reorder(dequantize(w, jnp.float32))) for w in weights]

    def packed_gated(x, gate, up, biases, *_, **__):
        return operand(gated(packed(x, [gate, up]), biases, jnp.float32))

    def dense_products(x, weights, biases, *_, **options):
        products = [in_parts(x, weight) for weight in weights]
        return [gated(products, biases, x.dtype)] if options.get("gated") else products

    monkeypatch.setattr(mosaic, "product_parts", packed)
    monkeypatch.setattr(mosaic, "gated_matmul", packed_gated)
    monkeypatch.setattr(dense, "_multiply", dense_products)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
def test_a_block_is_the_layers(packed, plain_products):
    kind, params = "recurrent", parameters(packed)["blocks_0"]
    x, state, timeline = operands(16, kind)
    with no_races():
        stream, after = by_rows(kind, params, x, state, timeline, interpret=interpreter())
    assert stream.parts is not None and stream.bias is not None
    wide = single(params), single(x).added_up(), single(state), timeline
    with jax.default_matmul_precision("highest"):
        wanted, wanted_after = plainly(kind, *wide, dtype=jnp.float32)
    y = added_up(stream)
    assert (y.shape, y.dtype) == (wanted.shape, HALF)
    assert error(y, wanted) < 4e-3
    for found, exact in zip(*map(jax.tree.leaves, (after, wanted_after)), strict=True):
        assert error(found, exact) < 8e-3


def test_a_stream_is_the_sum_of_what_counts():
    x, *_ = operands(3, "recurrent")
    total = np.asarray(x.x, np.float64)[:, 0] + np.asarray(x.parts, np.float64)[:, :3].sum(axis=0)
    total += np.asarray(x.bias, np.float64)
    assert added_up(x).dtype == HALF
    np.testing.assert_allclose(np.asarray(added_up(x), np.float64)[:, 0], total, rtol=2**-8)
    assert added_up(x.x) is x.x
    assert residual_rows.shape_of(x).shape == x.x.shape


@pytest.mark.slow
@pytest.mark.parametrize("parts", [0, 2])
def test_gradients_are_those_of_the_layers(parts, monkeypatch):
    kind, params = "recurrent", parameters(False)["blocks_0"]
    arguments = operands(2, kind, parts)
    # What goes forward takes a GPU; what comes back does not.
    monkeypatch.setattr(
        residual_rows._Block, "mix", lambda self, params, mixing, x, state, timeline: (x, state)
    )
    monkeypatch.setattr(residual_rows._Block, "multiply", lambda self, params, mlp, x: x)

    def gradient(block):
        def loss(params, x):
            y, state = block(kind, params, x, *arguments[1:])
            return (added_up(y).astype(jnp.float32)).sum() + state.hidden.sum()

        return jax.grad(loss, (0, 1))(params, arguments[0])

    found = gradient(by_rows)
    wanted = gradient(lambda kind, params, x, *rest: plainly(kind, params, added_up(x), *rest))
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        assert np.linalg.norm(np.asarray(b, np.float64)) > 0
        assert error(a, b) < 1e-2


def test_what_it_does_not_serve_it_says(monkeypatch):
    monkeypatch.setattr(backend, "missing", lambda: None)

    def reason(rows=4, time=1, width=512, dtype=HALF, state=None, packed=False, **options):
        x = jax.ShapeDtypeStruct((rows, time, width), dtype)
        row = jnp.zeros(rows, jnp.int32)
        timeline = Timeline(row, row, row, **options)
        return residual_rows.unsupported_reason(parameters(packed), x, state, timeline)

    assert reason() is None
    assert "65 rows" in reason(rows=65)
    assert reason(rows=65, packed=True) is None
    assert "3 tokens" in reason(time=3)
    assert "not float32" in reason(dtype=jnp.float32)
    assert "multiple of 512" in reason(width=768)
    assert "stacked" in reason(state=LayerOf(None, 0))
    assert "not known yet" in reason(open=True)
    monkeypatch.setattr(backend, "missing", lambda: "it needs a Hopper GPU")
    assert "Hopper" in reason()


def test_forced_where_it_cannot_serve_it_is_refused(monkeypatch):
    monkeypatch.setattr(choice, "platform", lambda: "gpu")
    params, arguments = parameters(False)["blocks_0"], operands(2, "recurrent")
    layers = ResidualBlock(CONFIG, "recurrent", dtype=HALF, param_dtype=HALF, kernel="mosaic_gpu")
    with pytest.raises(ValueError, match="residual_block: kernel 'mosaic_gpu' cannot serve"):
        layers.apply({"params": params}, *arguments)


@pytest.mark.skipif(not ON_HOPPER, reason="takes a GPU")
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("rows", [2, 4, 12, 16, 64, 256])
def test_a_models_step_errs_no_more_than_the_layers(rows, packed):
    params = parameters(packed)
    model = Griffin(CONFIG, dtype=HALF, param_dtype=HALF)
    wide = Griffin(CONFIG, dtype=jnp.float32, param_dtype=jnp.float32)
    tokens = jax.random.randint(jax.random.key(rows), (rows, 1), 0, CONFIG.vocab_size)
    blocks = [operands(rows, kind)[1] for kind in CONFIG.block_types]
    positions = jnp.asarray(np.arange(rows) * 37 % 90 + 64, jnp.int32)
    state = init_state(CONFIG, rows, HALF).replace(position=positions, blocks=tuple(blocks))

    def step(params, model, tokens, state):
        return model.apply({"params": params}, tokens, state)

    kernels = jax.jit(lambda p, t, s: step(p, model, t, s))(params, tokens, state)
    with choice.without("mosaic_gpu"):
        plain = jax.jit(lambda p, t, s: step(p, model, t, s))(params, tokens, state)
    with jax.default_matmul_precision("highest"), choice.without("mosaic_gpu"):
        exact = jax.jit(lambda p, t, s: step(p, wide, t, s))(single(params), tokens, single(state))
    for found, layers, wanted in zip(*map(jax.tree.leaves, (kernels, plain, exact)), strict=True):
        if jnp.issubdtype(found.dtype, jnp.floating):
            assert error(found, wanted) < max(1.5 * error(layers, wanted), 4e-3)
