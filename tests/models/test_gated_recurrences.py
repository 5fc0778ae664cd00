"""The other recurrences of the paper: against their equations, and as blocks of a model."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.config import GriffinConfig
from griffin_jax.language_model import LanguageModel
from griffin_jax.loading import quantize
from griffin_jax.models import Griffin, Timeline, declarations, init_params, init_state, param_axes
from griffin_jax.models.blocks import BLOCKS, block_of
from griffin_jax.quantization import QuantizationConfig, QuantizedTensor
from griffin_jax.training.lora import LoRAConfig, init_adapter
from griffin_jax.training.optimizer import decays

C = 8
KINDS = ("lru", "gru", "mamba", "cg_lru")
SMALL = GriffinConfig(
    vocab_size=64,
    width=64,
    mlp_width=64,
    num_layers=3,
    num_heads=2,
    recurrence_width=64,
    attention_window=8,
)
# A document that ends, one that begins in the middle, and padding.
POSITIONS = np.array([[3, 4, 5, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7]], np.int32)
LENGTHS = np.array([8, 5], np.int32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def operands(kind):
    """A recurrence, parameters that are nowhere zero, inputs and a state."""
    config = SMALL.replace(block_pattern=(kind,))
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 8, 64)).astype(np.float32)
    state = block_of(kind).init_state(config, 2, "float32", None)
    hidden = random.standard_normal(state.hidden.shape).astype(np.float32)
    when = Timeline(POSITIONS, LENGTHS, POSITIONS[:, 0])
    params = init_params(config, jax.random.key(0))["blocks_0"][f"{kind}_block"][kind]
    params = jax.tree.map(lambda p: p + 0.1 * random.standard_normal(p.shape), params)
    return module(kind), params, x, hidden, when


def module(kind):
    name, recurrence = block_of(kind).recurrence
    assert name == kind
    return recurrence(num_blocks=2)


def gates(params, name, x):
    """sigmoid of the block-diagonal layer `name`, float64."""
    weight, bias = (np.asarray(params[name][part], np.float64) for part in ("weight", "bias"))
    blocks = x.reshape(*x.shape[:-1], weight.shape[0], -1)
    y = np.einsum("btni,nij->btnj", blocks, weight) + bias
    return sigmoid(y.reshape(*x.shape[:-1], -1))


def equations(kind, params, x):
    """alpha, beta and the beta of a state that is forgotten, and the input, as the paper has them."""
    x = np.asarray(x, np.float64)
    one = np.ones_like(x)
    if kind == "gru":
        r = gates(params, "a_gate", x)
        return 1 - r, r, one, x
    a_param = np.asarray(params["a_param"], np.float64)
    if kind == "lru":
        a = sigmoid(-a_param) * one
        return a, np.sqrt(1 - a**2), one, x
    if kind == "mamba":
        a = softplus(a_param)
        alpha = (1 - gates(params, "a_gate", x)) ** a
        return alpha, (1 - alpha) / a, one / a, x
    r, i = gates(params, "a_gate", x), gates(params, "input_gate", x)
    a = (sigmoid(-a_param) * np.exp(1j * np.asarray(params["theta"], np.float64))) ** (C * r)
    return a, np.sqrt(1 - np.abs(a) ** 2), 1.0 * (r == r), i * (x[..., :32] + 1j * x[..., 32:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_recurrence_is_its_equation_token_by_token(kind):
    recurrence, params, x, hidden, when = operands(kind)
    found, after = jax.jit(recurrence.apply)({"params": params}, x, hidden, when)
    alpha, beta, forgetting, inputs = equations(kind, params, x)
    h = hidden[:, 0] + 1j * hidden[:, 1] if kind == "cg_lru" else hidden
    for t in range(8):
        reset = (POSITIONS[:, t] == 0)[:, None]
        new = np.where(reset, 0, alpha[:, t]) * h
        new = new + np.where(reset, forgetting[:, t], beta[:, t]) * inputs[:, t]
        h = np.where((t < LENGTHS)[:, None], new, h)
        y = np.concatenate([h.real, h.imag], axis=-1) if kind == "cg_lru" else h
        real = t < LENGTHS
        np.testing.assert_allclose(found[real, t], y[real], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.asarray(after).reshape(2, -1), y, rtol=1e-4, atol=1e-5)


def test_mambas_gate_is_the_grus_where_the_rate_is_one():
    mamba, params, *arguments = operands("mamba")
    params["a_param"] = jnp.full(64, np.log(np.expm1(1.0)))
    ours = mamba.apply({"params": params}, *arguments)
    theirs = module("gru").apply({"params": {"a_gate": params["a_gate"]}}, *arguments)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


# A layer of each kind, so that one program serves.
MIXED = SMALL.replace(block_pattern=(*KINDS, "attention"), num_layers=5)
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 12))


@pytest.fixture(scope="module")
def lm():
    return LanguageModel(MIXED, init_params(MIXED, jax.random.key(0)))


def assert_near(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow
def test_any_split_and_padding_give_the_same_and_texts_are_drawn(lm):
    whole, after = lm.apply(TOKENS)
    # In calls of 6, across the wrap of the window; then the same program with a padded row.
    first, state = lm.apply(TOKENS[:, :6])
    second, state = lm.apply(TOKENS[:, 6:], state)
    assert_near(np.concatenate([first, second], axis=1), whole)
    assert_near(state, after)
    _, padded = lm.apply(np.pad(TOKENS[:, :5], ((0, 0), (0, 1))), lengths=[5, 5])
    assert_near(padded, lm.apply(TOKENS[:, :5])[1])
    (sample,) = lm.sample([[1, 2, 3]], max_new_tokens=2)
    assert len(sample.tokens) == 2


def test_linear_layers_are_packed_and_adapted_and_nothing_else_is(lm):
    settings = QuantizationConfig(bnb_4bit_quant_type="nf4")
    packed = quantize(lm, settings).params
    adapted = LoRAConfig(rank=2)
    adapter = init_adapter(adapted, lm.params, jax.random.key(1))
    for index, kind in enumerate(KINDS):
        flat = flax.traverse_util.flatten_dict(packed[f"blocks_{index}"][f"{kind}_block"])
        in_four_bits = {path[0] for path, leaf in flat.items() if isinstance(leaf, QuantizedTensor)}
        assert in_four_bits == {"linear_x", "linear_y", "linear_out"}
        assert set(adapter[f"blocks_{index}"][f"{kind}_block"]) == in_four_bits


@pytest.mark.slow
def test_gradients_reach_every_parameter(lm):
    def loss(params):
        return Griffin(MIXED).apply({"params": params}, TOKENS)[0].var()

    gradient = jax.jit(jax.grad(loss))(lm.params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0 or "k_proj" in str(path), path


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_from_the_declarations(kind):
    config = SMALL.replace(block_pattern=(kind,))
    known = declarations(config)
    axes = flax.traverse_util.flatten_dict(param_axes(config, unflat(known)), sep="/")
    recurrence = [p for p in known if known[p].kind == "recurrence"]
    assert len(recurrence) == (0 if kind == "gru" else 6 if kind == "cg_lru" else 3)
    assert all(axes[path] == ("recurrence",) for path in recurrence)
    decayed = [p for p in known if decays(tuple(map(jax.tree_util.DictKey, p.split("/"))))]
    ends = {path.split("/")[-2] for path in decayed}
    assert not ends & {"a_gate", "input_gate", kind, "conv_1d"}
    state = init_state(config, 2).blocks[0]
    assert all("recurrence" in names for names in jax.tree.leaves(state.axes(), is_leaf=is_axes))


def unflat(known):
    tree = {path: np.zeros(declaration.shape) for path, declaration in known.items()}
    return flax.traverse_util.unflatten_dict(tree, sep="/")


def is_axes(leaf):
    return isinstance(leaf, tuple)


def test_complex_channels_that_make_no_pairs_are_refused():
    config = SMALL.replace(block_pattern=("cg_lru",), recurrence_width=66)
    with pytest.raises(ValueError, match="recurrence_width 66 must divide over twice the 2 gate"):
        init_params(config, jax.random.key(0))


def test_a_kind_that_is_not_registered_is_named_beside_those_that_are():
    config = SMALL.replace(block_pattern=("recurrent", "mamba2"))
    for ask in (declarations, lambda config: init_state(config, 1)):
        with pytest.raises(
            ValueError, match=r"'mamba2', which is no kind.*recurrent, att"
        ) as error:
            ask(config)
        assert all(kind in str(error.value) for kind in BLOCKS)
        assert "\n" not in str(error.value)
