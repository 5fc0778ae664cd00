"""What a trace brings out is what the model computes, and a patch takes its place."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.config import ATTENTION, RECURRENT
from griffin_jax.language_model import LanguageModel
from griffin_jax.models import (
    Griffin,
    attention,
    blocks,
    gated_recurrences,
    griffin,
    recurrent_rows,
    residual_step,
    rglru,
    stack_params,
)
from griffin_jax.tracing import gradients, place_names
from tests.tiny import CONFIGS, GRIFFIN, assert_same_state, params_of, random_tokens, relative_error

DEEP = GRIFFIN.replace(num_layers=5)
KINDS = GRIFFIN.replace(num_layers=4, block_pattern=("lru", "gru", "mamba", "cg_lru"))
LENGTHS = np.array([11, 3], np.int32)
TOKENS = random_tokens(GRIFFIN, (2, 11))


@functools.cache
def model(config=GRIFFIN, stacked=False):
    params = params_of(config)
    return LanguageModel(config, stack_params(config, params) if stacked else params)


@functools.cache
def everything(config=GRIFFIN, stacked=False):
    return model(config, stacked).trace(TOKENS, "*", lengths=LENGTHS)


def same(value):
    return value


class Unhashable:
    __hash__ = None

    def __call__(self, value):
        return value


def assert_same_run(actual, expected):
    np.testing.assert_array_equal(actual.logits, expected[0])
    jax.tree.map(np.testing.assert_array_equal, actual.state, expected[1])


FIRST, *MORE = (*CONFIGS.items(), ("other recurrences", KINDS))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(FIRST[1], id=FIRST[0]),
        *(pytest.param(config, id=name, marks=pytest.mark.slow) for name, config in MORE),
    ],
)
def test_seeing_or_patching_nothing_away_changes_no_bit(config):
    lm, calls = model(config), (TOKENS, random_tokens(config, (2, 3), seed=1))
    state = seen_state = patched_state = None
    for tokens, lengths in zip(calls, (LENGTHS, [3, 2]), strict=True):
        expected = lm.apply(tokens, state, lengths)
        seen = lm.trace(tokens, "*", state=seen_state, lengths=lengths)
        places = [x for x in place_names(config) if "logits" not in x]
        patch = dict.fromkeys(places, same)
        patched = lm.trace(tokens, patch=patch, state=patched_state, lengths=lengths)
        assert_same_run(seen, expected)
        assert_same_run(patched, expected)
        assert tuple(sorted(seen)) == tuple(sorted(place_names(config)))
        state, seen_state, patched_state = expected[1], seen.state, patched.state


def test_places_that_nobody_asks_for_leave_the_program_as_it_is(monkeypatch):
    def lowered(config, params):
        def run(params, tokens):
            return Griffin(config).apply({"params": params}, tokens)

        return jax.jit(run).lower(params, TOKENS).as_text()

    config = GRIFFIN.replace(num_layers=5, block_pattern=(RECURRENT, ATTENTION, "gru", "cg_lru"))
    params = params_of(config)
    forms = params, stack_params(config, params)
    texts = [lowered(config, form) for form in forms]
    for module in (attention, blocks, gated_recurrences, griffin, rglru):
        monkeypatch.setattr(module, "place", lambda module, name, value, settle=None: value)
    assert [lowered(config, form) for form in forms] == texts
    assert texts[0] != texts[1]


def test_without_names_a_trace_is_a_plain_call():
    lm = model()
    trace = lm.trace(TOKENS, lengths=LENGTHS)
    assert not trace and not list(trace)
    assert_same_run(trace, lm.apply(TOKENS, lengths=LENGTHS))


def test_no_fused_kernel_is_asked_where_something_is_seen(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a fused kernel hides the place")

    monkeypatch.setattr(residual_step, "unsupported_reason", refuse)
    monkeypatch.setattr(recurrent_rows, "unsupported_reason", refuse)
    lm = LanguageModel(GRIFFIN.replace(num_layers=2), params_of(GRIFFIN.replace(num_layers=2)))
    trace = lm.trace(TOKENS[:, :1], ("*.decay", "*.resid_mid"))
    assert list(trace.layers("*.resid_mid")) == [0, 1]


def test_what_is_seen_is_what_the_definitions_say():
    """Each place computed from those before it with NumPy."""
    config, params = GRIFFIN, jax.tree.map(lambda x: np.asarray(x, np.float64), params_of(GRIFFIN))
    seen = {name: np.asarray(x, np.float64) for name, x in everything().items()}
    real = np.arange(TOKENS.shape[1]) < LENGTHS[:, None]

    def near(actual, expected):
        assert relative_error(actual[real], expected[real]) <= 1e-6

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def linear(layer, x):
        return x @ layer["weight"].T + layer["bias"]

    def norm(layer, x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * (1 + layer["scale"])

    def gelu(x):
        return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))

    scale = np.float64(jnp.bfloat16(config.width**0.5))
    near(seen["embedding"], params["embedder"]["embedding"][TOKENS] * scale)
    residual = seen["embedding"]
    for i in range(config.num_layers):
        layer = params[f"blocks_{i}"]
        at = {x.removeprefix(f"blocks.{i}."): v for x, v in seen.items() if f"blocks.{i}." in x}
        near(at["resid_pre"], residual)
        near(at["temporal_pre_norm"], norm(layer["temporal_pre_norm"], at["resid_pre"]))
        near(at["resid_mid"], at["resid_pre"] + at["temporal_out"])
        near(at["channel_pre_norm"], norm(layer["channel_pre_norm"], at["resid_mid"]))
        mlp = layer["mlp_block"]
        near(at["mlp.gate"], linear(mlp["gate_proj"], at["channel_pre_norm"]))
        near(at["mlp.up"], linear(mlp["up_proj"], at["channel_pre_norm"]))
        near(at["mlp.hidden"], gelu(at["mlp.gate"]) * at["mlp.up"])
        near(at["mlp.out"], linear(mlp["down_proj"], at["mlp.hidden"]))
        near(at["resid_post"], at["resid_mid"] + at["mlp.out"])
        residual = at["resid_post"]
        final = norm(params["final_norm"], residual) @ params["embedder"]["embedding"].T
        near(at["logits"], 30 * np.tanh(final / 30))
        if "rg_lru.state" in at:
            block, unit = layer["recurrent_block"], layer["recurrent_block"]["rg_lru"]
            x, width = linear(block["linear_x"], at["temporal_pre_norm"]), config.recurrence_width
            conv = np.zeros_like(x)
            for distance, tap in enumerate(block["conv_1d"]["weight"][::-1]):
                conv[:, distance:] += x[:, : x.shape[1] - distance] * tap
            near(at["conv_1d"], conv + block["conv_1d"]["bias"])
            heads = at["conv_1d"].reshape(*x.shape[:2], config.num_heads, -1)
            for gate, place in (("a_gate", "recurrence_gate"), ("input_gate", "input_gate")):
                y = np.einsum("btni,nio->btno", heads, unit[gate]["weight"]) + unit[gate]["bias"]
                near(at[f"rg_lru.{place}"], sigmoid(y).reshape(*x.shape[:2], width))
            log_a = -8 * np.log1p(np.exp(unit["a_param"])) * at["rg_lru.recurrence_gate"]
            near(at["rg_lru.log_decay"], log_a)
            begins = np.arange(x.shape[1])[None, :, None] == 0
            near(at["rg_lru.decay"], np.where(begins, 0, np.exp(log_a)))
            multiplier = np.where(begins, 1, np.sqrt(-np.expm1(2 * log_a)))
            near(at["rg_lru.input"], multiplier * at["rg_lru.input_gate"] * at["conv_1d"])
            h = np.zeros_like(x)
            for t in range(x.shape[1]):
                h[:, t] = at["rg_lru.decay"][:, t] * h[:, t - 1] + at["rg_lru.input"][:, t]
            near(at["rg_lru.state"], h)
            near(
                at["gated_output"],
                gelu(linear(block["linear_y"], at["temporal_pre_norm"])) * h,
            )
            near(at["temporal_out"], linear(block["linear_out"], at["gated_output"]))
        else:
            block = layer["attention_block"]
            v = at["temporal_pre_norm"] @ block["v_proj"]["weight"].T
            near(at["attention.v"][:, :, 0], v)
            q, k = at["attention.q"], at["attention.k"][:, :, 0]
            # Rotated heads keep their lengths, and the first token's is not turned at all.
            plain = (at["temporal_pre_norm"] @ block["q_proj"]["weight"].T).reshape(q.shape)
            near(np.square(q).sum(-1), np.square(plain).sum(-1))
            assert relative_error(q[:, 0], plain[:, 0]) <= 1e-6
            t = np.arange(q.shape[1])
            visible = (t <= t[:, None]) & (t >= t[:, None] - config.attention_window)
            scores = np.einsum("btnh,bsh->bnts", q, k) * config.head_size**-0.5
            assert (
                relative_error(at["attention.scores"][..., visible], scores[..., visible]) <= 1e-6
            )
            weights = np.where(visible, np.exp(scores), 0)
            weights /= weights.sum(-1, keepdims=True)
            assert relative_error(at["attention.weights"], weights) <= 1e-6
            near(
                at["attention.out"],
                np.einsum("bnts,bsh->btnh", weights, at["attention.v"][:, :, 0]),
            )
            out = at["attention.out"].reshape(*q.shape[:2], -1)
            near(at["temporal_out"], linear(block["o_proj"], out))
    near(seen["final_norm"], norm(params["final_norm"], residual))
    np.testing.assert_array_equal(everything()["logits"], everything().logits)


@pytest.mark.slow
def test_stacked_layers_have_the_same_places_and_patches():
    patch = {
        "blocks.2.rg_lru.recurrence_gate": jnp.sqrt,
        "blocks.[13].attention.weights": lambda x: x[..., ::-1],
        "blocks.4.*.state": lambda x: x.at[:, 5].set(1.0),
        "blocks.0.mlp.hidden": jnp.zeros_like,
    }
    one_by_one, stacked = (model(DEEP, stacked).trace(TOKENS, "*", patch) for stacked in (0, 1))
    assert list(stacked) == list(one_by_one) and len(stacked) > 80
    for name, value in one_by_one.items():
        assert relative_error(stacked[name], value) <= 1e-5, name
    assert_same_state(stacked.state, one_by_one.state)
    assert not stacked["blocks.0.mlp.hidden"].any() and stacked["blocks.1.mlp.hidden"].any()
    plain = model(DEEP, True).trace(TOKENS, "*.rg_lru.decay")
    assert relative_error(plain.logits, stacked.logits) > 1e-3
    assert list(plain.layers("*.decay")) == [0, 2, 4]


def test_a_state_that_is_swapped_is_what_the_recurrence_goes_on_from():
    lm, swapped = model(), np.linspace(-1, 1, GRIFFIN.recurrence_width, dtype=np.float32)
    patch = {"blocks.2.rg_lru.state": lambda h: h.at[:, 4].set(swapped)}
    found = lm.trace(TOKENS, "blocks.2.rg_lru.state", patch)
    _, state = lm.apply(TOKENS[:, :5])
    hidden = jnp.broadcast_to(swapped, state.blocks[2].hidden.shape)
    layers = (*state.blocks[:2], state.blocks[2].replace(hidden=hidden))
    logits, after = lm.apply(TOKENS[:, 5:], dataclasses.replace(state, blocks=layers))
    assert relative_error(found.logits[:, 5:], logits) <= 1e-5
    assert_same_state(found.state, after)
    np.testing.assert_array_equal(found["blocks.2.rg_lru.state"][:, 4], hidden)
    # Frozen, it stays as it is.
    frozen = {"blocks.2.rg_lru.state": lambda h: h.at[:, 4:].set(h[:, 4:5])}
    states = lm.trace(TOKENS, "*.state", frozen)["blocks.2.rg_lru.state"]
    np.testing.assert_array_equal(
        states[:, 4:], np.broadcast_to(states[:, 4:5], states[:, 4:].shape)
    )


def test_scores_that_are_patched_make_the_weights():
    def first_alone(scores):
        return jnp.where(jnp.arange(scores.shape[-1]) == 0, scores, -1e30)

    found = model().trace(TOKENS[:, :6], "*.attention.*", {"*.attention.scores": first_alone})
    weights = found["blocks.1.attention.weights"]
    np.testing.assert_allclose(weights[..., 0], 1, atol=1e-6)
    values = jnp.broadcast_to(
        found["blocks.1.attention.v"][:, :1], found["blocks.1.attention.out"].shape
    )
    assert relative_error(found["blocks.1.attention.out"], values) <= 1e-6


@pytest.mark.slow
def test_patches_of_one_place_follow_one_another_and_take_traced_values():
    lm, place = model(), "blocks.0.rg_lru.decay"
    twice = lm.trace(TOKENS, place, {"*.decay": lambda a: a / 2, place: lambda a: a + 0.25})
    np.testing.assert_array_equal(twice[place], lm.trace(TOKENS, place)[place] / 2 + 0.25)

    @jax.jit
    def logits(lm, factor):
        return lm.trace(TOKENS, patch={"blocks.1.resid_mid": lambda x: x * factor}).logits

    np.testing.assert_array_equal(logits(lm, 1.0), lm.apply(TOKENS)[0])
    expected = lm.trace(TOKENS, patch={"blocks.1.resid_mid": lambda x: x * 3.0}).logits
    assert relative_error(logits(lm, 3.0), expected) <= 1e-6


@pytest.mark.slow
def test_gradients_are_how_the_loss_changes():
    lm, names = (
        model(),
        ("blocks.0.rg_lru.state", "blocks.1.attention.weights", "blocks.2.resid_mid"),
    )

    def loss(trace):
        return jnp.sum(jnp.sin(trace.logits[:, -1]))

    found = gradients(lm, TOKENS, names, loss)
    assert sorted(found) == sorted(names)
    for name, gradient in found.items():
        direction = gradient / jnp.linalg.norm(gradient)

        def moved(by, name=name, direction=direction):
            return float(loss(lm.trace(TOKENS, patch={name: lambda x: x + by * direction})))

        step = 1e-2
        slope = (moved(step) - moved(-step)) / (2 * step)
        if name.endswith(
            "state"
        ):  # where a patch that reaches all tokens keeps none of their effect
            at = gradient.at[:, :-1].set(0)
            direction = at / jnp.linalg.norm(at)
            slope = (moved(step, direction=direction) - moved(-step, direction=direction)) / (
                2 * step
            )
            gradient = at
        np.testing.assert_allclose(slope, jnp.linalg.norm(gradient), rtol=1e-2)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda lm: lm.trace(TOKENS, ["blocks.*.rglru.decay"]),
            r"names: the model has no place 'blocks.\*.rglru.decay'; the nearest are blocks.\*.rg_lru.decay",
        ),
        (
            lambda lm: lm.trace(TOKENS, "blocks.0.attention.q"),
            "the nearest are blocks.1.attention.q",
        ),
        (lambda lm: lm.trace(TOKENS, "blocks.3.resid_pre"), "nearest are blocks.[012].resid_pre"),
        (
            lambda lm: lm.trace(TOKENS, 5),
            "names must be names of places or patterns of them, got 5",
        ),
        (
            lambda lm: lm.trace(TOKENS, patch={"resid": same}),
            "patch: the model has no place 'resid'",
        ),
        (
            lambda lm: lm.trace(TOKENS, patch=[same]),
            "patch must be functions by the names of places",
        ),
        (
            lambda lm: lm.trace(TOKENS, patch={"embedding": 0}),
            r"patch\['embedding'\] must be a function",
        ),
        (lambda lm: lm.trace(TOKENS, patch={"embedding": Unhashable()}), "wrap it in a lambda"),
        (
            lambda lm: lm.trace(TOKENS, patch={"blocks.1.logits": same}),
            "patch: nothing reads blocks.1.logits; patch blocks.1.resid_post",
        ),
        (
            lambda lm: lm.trace(TOKENS, patch={"embedding": lambda x: x[:, :2]}),
            r"the patch of embedding returned float32\[2, 2, 32\]; .* float32\[2, 11, 32\]",
        ),
        (
            lambda lm: lm.trace(TOKENS, patch={"*.0.resid_pre": lambda x: x.astype(jnp.bfloat16)}),
            r"the patch of blocks.0.resid_pre returned bfloat16\[2, 11, 32\]; .*float32\[2, 11, 32\]",
        ),
        (
            lambda lm: lm.trace(TOKENS, patch={"embedding": lambda x: None}),
            "the patch of embedding returned None; it must return an array",
        ),
        (lambda lm: lm.trace([[99]], "*"), "tokens range over 99 to 99; ids are 0 to 63"),
        (
            lambda lm: gradients(lm, TOKENS, "blocks.0.logits", None),
            "nothing reads blocks.0.logits",
        ),
    ],
)
def test_wrong_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(model())
    assert "\n" not in str(caught.value)
