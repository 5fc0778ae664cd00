"""What callers may give, and the one line that they get for anything else."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import griffin_jax
from griffin_jax import inputs
from griffin_jax.inference.reader import Reader
from griffin_jax.models import init_state
from griffin_jax.models.stack import stack_state
from griffin_jax.quantization import QuantizedTensor
from tests.inference.tiny_model import CONFIG, language_model

VOCAB, LAYERS = CONFIG.vocab_size, CONFIG.num_layers
SHORT = {"max_new_tokens": 2}


def state(batch=1, **changes):
    return init_state(CONFIG.replace(**changes), batch)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda lm: lm.sample(None), "prompts must be text, or a list .*, got None"),
        (lambda lm: lm.sample(5), "prompts must be text, or a list"),
        (lambda lm: lm.sample({"prompt": "x"}), "prompts must be text, or a list"),
        (lambda lm: lm.sample(b"abc"), r"prompts must be .* got bytes \(b'abc'\); decode them"),
        (lambda lm: lm.sample([b"abc"]), "prompt 0 must be text .* got bytes"),
        (lambda lm: lm.sample([{"prompt": "x"}]), "prompt 0 must be text or a list"),
        (lambda lm: lm.sample([None]), "prompt 0 must be text or a list of token ids, got None"),
        (lambda lm: lm.sample([["a", "b"]]), "prompt 0 must be .* got a list of 'a'"),
        (lambda lm: lm.sample([[5, -1]]), f"prompt 0 holds token -1; ids are 0 to {VOCAB - 1}"),
        (lambda lm: lm.sample([[5, 2**40]]), f"prompt 0 holds token {2**40}; ids are"),
        (lambda lm: lm.sample([[5, 2**80]]), "prompt 0 holds token 12089"),
        (lambda lm: lm.sample([[5.0, 6.0]]), "prompt 0 holds token 5.0; ids are"),
        (lambda lm: lm.sample([[True]]), "prompt 0 holds token True"),
        (lambda lm: lm.sample([np.ones((2, 2), int)]), "prompt 0 must be a list of token ids"),
        (lambda lm: lm.sample(["x"], temperature="0.8"), "temperature must be a number"),
        (lambda lm: lm.sample(["x"], temperature=math.nan), "temperature must be a number"),
        (lambda lm: lm.sample(["x"], top_k=0), "top_k must be"),
        (lambda lm: lm.sample(["x"], seed=None), "seed must be a whole number .* got None"),
        (lambda lm: lm.sample(["x"], seed="7"), "seed must be a whole number .* got '7'"),
        (lambda lm: lm.sample(["x"], seed=[1, 2]), "2 seeds for 1 prompts"),
        (lambda lm: lm.sample(["x"], stop=None), "stop must be text or a list of texts, got None"),
        (lambda lm: lm.sample(["x"], stop=[None]), "stop must hold strings"),
        (lambda lm: lm.sample(["x"], stop=b"x"), "stop must be text"),
        (lambda lm: lm.sample(["x"], stop=""), "stop must hold strings, none of them empty"),
        (lambda lm: lm.sample(["x"], max_new_tokens=None), "max_new_tokens must be a whole number"),
        (lambda lm: lm.sample(["x"], max_new_tokens="9"), "max_new_tokens must be"),
        (lambda lm: lm.sample(["x"], max_new_tokens=2**40), "max_new_tokens must be .* at most"),
        (lambda lm: lm.sample(["x"], batch_size=None), "batch_size must be a whole number"),
        (lambda lm: lm.sample(["x"], batch_size=1.5), "batch_size must be a whole number"),
        (lambda lm: lm.stream(["a", "b"]), "prompt must be text .* got a list of 'a'"),
        (lambda lm: lm.stream(None), "prompt must be text or a list of token ids, got None"),
        (lambda lm: lm.stream("x", seed=None), "seed must be"),
        (lambda lm: lm.stream("x", max_new_tokens=-1), "max_new_tokens must be"),
        (lambda lm: lm.score(["x"]), "pair 0 must be two texts or two lists .* got 'x'"),
        (lambda lm: lm.score(["xy"]), "pair 0 must be two texts"),
        (lambda lm: lm.score("xy"), "pairs must be a list"),
        (lambda lm: lm.score(None), "pairs must be a list"),
        (lambda lm: lm.score([("a", "b", "c")]), "pair 0 must be two texts"),
        (lambda lm: lm.score([("a", None)]), "pair 0 must be two texts"),
        (lambda lm: lm.score([(b"a", b"b")]), "pair 0 must be two texts"),
        (lambda lm: lm.score([([5], [-100])]), "continuation 0 holds token -100"),
        (lambda lm: lm.score([([5], [VOCAB])]), f"continuation 0 holds token {VOCAB}"),
        (lambda lm: lm.score([([], [5])]), "context 0 is empty"),
        (lambda lm: lm.apply(None), "tokens must be integers"),
        (lambda lm: lm.apply("ab"), "tokens must be integers"),
        (lambda lm: lm.apply([[5], [6, 7]]), "rows that are none or differ in length"),
        (lambda lm: lm.apply([[5, -1]]), "tokens range over -1 to 5"),
        (lambda lm: lm.apply([[True]]), "tokens must be integers"),
        (lambda lm: lm.apply([[5]], lengths=[0.5]), "lengths must be 1 numbers"),
        (lambda lm: lm.apply([[5]], lengths="1"), "lengths must be 1 numbers"),
        (
            lambda lm: lm.apply([[5]], lengths=jnp.asarray([1, 1])),
            r"lengths must be whole numbers \[1\], as tokens are given, got int32\[2\]",
        ),
        (lambda lm: lm.apply([[5]], lengths=jnp.asarray([0.5])), "lengths must be whole numbers"),
        (
            lambda lm: lm.apply([[5, 6]], positions=jnp.asarray([[0]])),
            r"positions must be whole numbers \[1, 2\].*int32\[1, 1\]",
        ),
        (
            lambda lm: lm.apply([[5]], {"position": 0}),
            "state must be what an earlier call returned",
        ),
        (lambda lm: lm.apply([[5]], 0), "state must be what an earlier call returned"),
        (lambda lm: lm.apply([[5]], state(2)), "state is of 2 rows, and tokens have 1"),
        (
            lambda lm: lm.apply([[5]], state(num_layers=LAYERS + 1)),
            "state is of a model of another shape",
        ),
        (lambda lm: lm.apply([[5]], state(head_size=32)), "state is of a model of another shape"),
        (lambda lm: lm.apply([[5]], state(conv_width=2)), "state is of a model of another shape"),
        (lambda lm: lm.chat().send(""), "message is empty"),
        (lambda lm: lm.chat().send(None), "message must be text, got None"),
        (lambda lm: griffin_jax.save({}, "x"), "lm must be a LanguageModel, got {}"),
        (lambda lm: griffin_jax.save(lm, "x", format="gguf"), "format must be one of orbax, hugg"),
        (lambda lm: griffin_jax.quantize({}, None), "lm must be a LanguageModel"),
        (lambda lm: griffin_jax.quantize(lm, {"bits": 4}), "quantization must be a Quantization"),
        (lambda lm: griffin_jax.quantize(lm, "nf4"), r"such as griffin_jax.QuantizationConfig\(\)"),
        (lambda lm: griffin_jax.load("griffin-tiny", mesh="x"), "mesh must be of griffin_jax.shar"),
        (lambda lm: griffin_jax.load("griffin-tiny", quantization={}), "quantization must be a Q"),
        (lambda lm: griffin_jax.dequantize(lm.params), "lm must be a LanguageModel"),
        (lambda lm: griffin_jax.dequantize(lm, "int8"), "dtype must be one of"),
        (lambda lm: griffin_jax.preset(None), "no preset None; there are"),
    ],
)
def test_a_wrong_argument_is_a_value_error_of_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(language_model())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_right_states_pass_in_either_layout_and_as_tracers():
    for batch in (1, 3):
        plain = state(batch)
        inputs.check_state(plain, CONFIG, batch)
        inputs.check_state(stack_state(CONFIG, plain), CONFIG, batch)
        jax.eval_shape(lambda s, b=batch: inputs.check_state(s, CONFIG, b), plain)


def test_one_text_gives_one_sample_and_a_generator_a_list():
    lm = language_model()
    one = lm.sample("abc", seed=[3], temperature=1.0, **SHORT)
    assert isinstance(one, griffin_jax.Sample)
    of_list = lm.sample((text for text in ["abc"]), seed=[3], temperature=1.0, **SHORT)
    assert of_list == [one]
    assert (
        lm.sample(np.array([[5, 6]]), **SHORT)[0].tokens == lm.sample([[5, 6]], **SHORT)[0].tokens
    )


@pytest.mark.parametrize("temperature", [0, 1e-38, 1e-45, 1e-320, 1e-7])
def test_a_temperature_below_what_float32_divides_by_is_greedy(temperature):
    lm = language_model()
    greedy = lm.sample([[5, 6, 7]], max_new_tokens=4)[0].tokens
    found = lm.sample([[5, 6, 7]], max_new_tokens=4, temperature=temperature, top_p=0.9, seed=5)
    assert found[0].tokens == greedy


def test_a_small_temperature_that_counts_draws_the_most_likely_token():
    lm = language_model()
    greedy = lm.sample([[5, 6, 7]], max_new_tokens=4)[0].tokens
    assert lm.sample([[5, 6, 7]], max_new_tokens=4, temperature=1e-6, seed=5)[0].tokens == greedy


def test_no_new_tokens_cost_no_work(monkeypatch):
    lm = language_model()
    monkeypatch.setattr(Reader, "add", lambda self, request: 1 / 0)
    (sample,) = lm.sample(["x"], max_new_tokens=0)
    assert (sample.text, sample.tokens, sample.finish_reason) == ("", [], "length")
    assert list(lm.stream("x", max_new_tokens=0)) == []
    with pytest.raises(ValueError, match="holds token -1"):
        lm.sample([[-1]], max_new_tokens=0)


@pytest.mark.slow
def test_an_unpacked_model_has_gradients_and_the_same_logits():
    lm = griffin_jax.quantize(language_model(), griffin_jax.QuantizationConfig())
    whole = griffin_jax.dequantize(lm)
    leaves = jax.tree.leaves(whole.params, is_leaf=lambda x: isinstance(x, QuantizedTensor))
    assert not any(isinstance(leaf, QuantizedTensor) for leaf in leaves)
    assert whole.quantization is None
    tokens = [[5, 6, 7]]
    expected = np.asarray(whole.apply(tokens)[0])
    np.testing.assert_allclose(lm.apply(tokens)[0], expected, atol=1e-5 * np.abs(expected).max())

    def loss(params):
        return jnp.sum(dataclasses.replace(whole, params=params).apply(tokens)[0][0, -1] ** 2)

    gradients = jax.tree.leaves(jax.jit(jax.grad(loss))(whole.params))
    assert all(np.isfinite(g).all() for g in gradients)
    assert sum(float(jnp.abs(g).sum()) for g in gradients) > 0
    narrow = griffin_jax.dequantize(lm, "bfloat16").params
    assert narrow["blocks_0"]["mlp_block"]["up_proj"]["weight"].dtype == jnp.bfloat16


def test_the_version_is_told():
    assert griffin_jax.__version__.count(".") == 2
