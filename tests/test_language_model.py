"""The public face of the library."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import griffin_jax
from griffin_jax.checkpoints import BUNDLED, CheckpointError, find_folder
from griffin_jax.inference import score
from griffin_jax.kernels import packed_matmul_cpu
from griffin_jax.models import is_stacked, unstack_params
from griffin_jax.quantization import QuantizationConfig, QuantizedTensor, dequantize
from griffin_jax.tokenizer import load_tokenizer
from tests.checkpoints.tiny_model import assert_same_tree, random_params
from tests.inference.tiny_model import BOS, CONFIG, ByteTokenizer, language_model, plain_logits

TOKENIZER = ByteTokenizer()
TEXTS = ["x", "a short one", "far beyond the window " * 2]
LOADS_FLOAT32 = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="elsewhere a model is loaded in bfloat16 by default"
)


def test_texts_and_their_tokens_give_the_same_samples_in_any_batch_size():
    lm = language_model()
    of_texts = lm.sample(TEXTS, max_new_tokens=12, temperature=1.0, seed=3)
    tokens = [TOKENIZER.encode(text) for text in TEXTS]
    one_by_one = lm.sample(tokens, max_new_tokens=12, temperature=1.0, seed=3, batch_size=1)
    assert [s.tokens for s in of_texts] == [s.tokens for s in one_by_one]
    assert tokens[0][0] == BOS
    assert lm.sample([]) == []


def test_streamed_pieces_join_to_the_sample():
    lm = language_model()
    options = {"max_new_tokens": 12, "temperature": 1.0, "seed": [3]}
    (sample,) = lm.sample([TEXTS[0]], **options)
    assert "".join(lm.stream(TEXTS[0], **options)) == sample.text


def test_apply_in_two_calls_equals_one():
    lm = language_model()
    tokens = TOKENIZER.encode("two calls")
    first, state = lm.apply([tokens[:4]])
    second, _ = lm.apply(jnp.asarray([tokens[4:]]), state)
    both = np.concatenate([first[0], second[0]])
    np.testing.assert_allclose(both, plain_logits(tuple(tokens)), atol=1e-3)


def test_the_last_logits_alone_are_those_among_all():
    lm = language_model()
    tokens, lengths = np.arange(10, 22).reshape(2, 6), [6, 3]
    every, state = lm.apply(tokens, lengths=lengths)
    last, after = lm.apply(tokens, lengths=lengths, last_only=True)
    np.testing.assert_allclose(last, [every[0, 5], every[1, 2]], atol=1e-5)
    np.testing.assert_array_equal(after.position, state.position)
    np.testing.assert_allclose(
        lm.apply(tokens, last_only=True)[0], lm.apply(tokens)[0][:, -1], atol=1e-5
    )


def test_positions_pack_documents_into_a_row():
    lm = language_model()
    one, other = TOKENIZER.encode("one"), TOKENIZER.encode("and another")
    positions = [[*range(len(one)), *range(len(other))]]
    packed, _ = lm.apply([one + other], positions=positions)
    apart = np.concatenate([lm.apply([one])[0][0], lm.apply([other])[0][0]])
    np.testing.assert_allclose(packed[0], apart, atol=1e-4)


def test_the_ids_of_tokens_on_a_device_are_not_read():
    logits, _ = language_model().apply(jnp.asarray([[5, CONFIG.vocab_size]]))
    assert np.isfinite(logits[0, 0]).all()  # the row's other tokens are what they would be


def test_apply_can_be_traced():
    lm = language_model()
    shape = jax.eval_shape(lambda tokens: lm.apply(tokens)[0], jnp.zeros((2, 3), int))
    assert shape.shape == (2, 3, CONFIG.vocab_size)


def test_a_model_is_a_pytree_that_jit_takes():
    lm = language_model()
    tokens = np.array([TOKENIZER.encode("a pytree")])
    logits = jax.jit(lambda lm, tokens: lm.apply(tokens)[0])(lm, tokens)
    np.testing.assert_allclose(logits, lm.apply(tokens)[0], atol=1e-5)
    halved = jax.tree.map(lambda x: x / 2, lm)
    assert halved.tokenizer is lm.tokenizer and halved.config == lm.config
    first, again = jax.tree.leaves(lm)[0], jax.tree.leaves(halved)[0]
    np.testing.assert_array_equal(again, first / 2)
    assert jax.tree.structure(lm) == jax.tree.structure(halved)


@pytest.mark.slow
def test_gradients_reach_the_float_leaves_beside_packed_weights():
    lm = griffin_jax.quantize(language_model(), QuantizationConfig(bnb_4bit_quant_type="nf4"))
    tokens = np.array([TOKENIZER.encode("gradient")])

    def loss(lm):
        return jnp.mean(lm.apply(tokens)[0] ** 2)

    found = jax.grad(loss, allow_int=True)(lm)
    norm = found.params["final_norm"]["scale"]
    assert norm.dtype == jnp.float32 and np.abs(norm).max() > 0
    # The loss changes along the gradient as the gradient says.
    scale, step = lm.params["final_norm"]["scale"], norm / jnp.sum(norm**2)

    def moved(by):
        params = lm.params | {"final_norm": {"scale": scale + by * step}}
        return float(loss(dataclasses.replace(lm, params=params)))

    np.testing.assert_allclose((moved(1) - moved(-1)) / 2, 1.0, rtol=1e-2)


def test_a_model_is_shown_on_one_screen():
    text = repr(language_model())
    assert len(text) < 2000 and len(text.splitlines()) < 24
    assert "arrays" in text and "float32" in text
    jax.make_jaxpr(lambda lm: (repr(lm), lm.params)[1])(language_model())  # while traced, too


def test_scores_of_texts_are_those_of_their_tokens():
    lm = language_model()
    pairs = [("", "abc"), ("one ", "two"), (TEXTS[2], " end")]
    cut = [("", "abc"), ("one", " two"), (TEXTS[2].rstrip(), "  end")]
    tokens = [(TOKENIZER.encode(c), TOKENIZER.encode(x, bos=False)) for c, x in cut]
    found, expected = lm.score(pairs), lm.score(tokens)
    np.testing.assert_allclose([p for p, _ in found], [p for p, _ in expected], rtol=1e-5)


@pytest.mark.parametrize("small", [True, False])
def test_scores_read_the_values_of_a_small_models_weights(monkeypatch, small):
    monkeypatch.setattr(packed_matmul_cpu, "MAX_DECODED_BYTES", 1 << 27 if small else 1)
    config = dataclasses.replace(CONFIG, width=64, mlp_width=64, recurrence_width=64)
    lm = griffin_jax.quantize(language_model(config), QuantizationConfig())
    pairs = [([BOS, 70], [71, 72]), ([BOS], [80])]
    found, expected = lm.score(pairs), score(lm.model, lm.params, pairs)
    assert (lm.scoring_params is lm.decoding_params) == small
    assert (lm.scoring_params is lm.params) != small
    np.testing.assert_allclose([p for p, _ in found], [p for p, _ in expected], rtol=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda lm: lm.sample(["ok", ""]), "prompt 1 is empty"),
        (lambda lm: lm.sample([[]]), "prompt 0 is empty"),
        (lambda lm: lm.sample([[5, 999]]), "prompt 0 holds token 999"),
        (lambda lm: lm.sample(["x"], top_p=1.5), "top_p"),
        (lambda lm: lm.sample(["x"], max_new_tokens=-1), "max_new_tokens"),
        (lambda lm: lm.sample(["x"], batch_size=0), "batch_size"),
        (lambda lm: lm.stream(""), "prompt is empty"),
        (lambda lm: lm.apply([[5, 261]]), "tokens range over 5 to 261; ids are 0 to 260"),
        (lambda lm: lm.apply([5, 6]), r"tokens must be integers \[batch, time\], got int64\[2\]"),
        (lambda lm: lm.apply([[0.5]]), "tokens must be integers"),
        (lambda lm: lm.apply(np.zeros((1, 0), int)), r"tokens must be integers .*\[1, 0\]"),
        (lambda lm: lm.apply([[5, 6]], lengths=[3]), r"lengths must be 1 numbers of 0 to 2.*\[3\]"),
        (lambda lm: lm.apply([[5, 6]], lengths=[1, 1]), "lengths must be 1 numbers of 0 to 2"),
        (lambda lm: lm.apply(jnp.zeros((2, 3))), r"tokens must be integers .*float32\[2, 3\]"),
        (
            lambda lm: lm.apply([[5, 6]], positions=[0, 1]),
            r"positions must be whole numbers \[1, 2",
        ),
        (lambda lm: lm.apply([[5, 6]], positions=[[0, 2]]), "positions must go up by one"),
        (lambda lm: lm.apply([[5, 6]], positions=[[-1, 0]]), "positions must go up by one"),
        (lambda lm: lm.sample([5, 6]), "prompt 0 must be text or a list of token ids, got 5"),
        (lambda lm: lm.score([("a", "")]), "continuation 0 adds no token"),
        (lambda lm: lm.score([("a", [5])]), "pair 0 must be two texts or two lists"),
        (lambda lm: lm.score([("a", "b")], batch_size=0), "batch_size"),
        (
            lambda lm: griffin_jax.load(BUNDLED, dtype="float"),
            "dtype must be one of float32.*'float'",
        ),
        (lambda lm: griffin_jax.load(BUNDLED, dtype="int8"), "dtype must be one of .*'int8'"),
    ],
)
def test_wrong_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(language_model())
    assert "\n" not in str(caught.value)


def test_without_a_tokenizer_text_is_refused():
    lm = griffin_jax.LanguageModel(CONFIG, language_model().params)
    with pytest.raises(ValueError, match="no tokenizer"):
        lm.sample(["text"])
    with pytest.raises(ValueError, match="no tokenizer"):
        lm.chat()


@LOADS_FLOAT32
@pytest.mark.parametrize("format", ["orbax", "huggingface"])
def test_a_saved_model_comes_back_exactly_with_its_tokenizer(tmp_path, format):
    tokenizer = load_tokenizer(find_folder(BUNDLED))
    config = griffin_jax.preset("tiny").replace(vocab_size=tokenizer.vocab_size, num_layers=3)
    lm = griffin_jax.LanguageModel(config, random_params(config), tokenizer)
    griffin_jax.save(lm, tmp_path / "model", format=format)
    back = griffin_jax.load(tmp_path / "model")
    assert back.config == config
    assert_same_tree(back.params, lm.params)
    assert back.tokenizer.encode("A text.") == tokenizer.encode("A text.")
    assert back.dtype == jnp.float32
    narrow = griffin_jax.load(tmp_path / "model", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow.params)} == {jnp.dtype(jnp.bfloat16)}


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path):
    tokenizer = load_tokenizer(find_folder(BUNDLED))
    config = griffin_jax.preset("tiny").replace(num_layers=1)
    lm = griffin_jax.LanguageModel(config, random_params(config), tokenizer)
    griffin_jax.save(lm, tmp_path / "model")
    with pytest.raises(ValueError, match="rows"):
        griffin_jax.load(tmp_path / "model")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        griffin_jax.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        griffin_jax.load(tmp_path / "nothing")


NF4 = griffin_jax.QuantizationConfig(bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    lm = griffin_jax.LanguageModel(CONFIG, language_model().params)
    griffin_jax.save(lm, tmp_path_factory.mktemp("whole") / "model")
    return tmp_path_factory.getbasetemp() / "whole0" / "model"


@LOADS_FLOAT32
def test_a_packed_model_is_the_one_that_is_packed_on_loading(folder):
    lm = griffin_jax.load(folder)
    packed = griffin_jax.quantize(lm, NF4)
    loaded = griffin_jax.load(folder, quantization=NF4)
    assert_same_tree(packed.params, loaded.params)
    assert packed.quantization == loaded.quantization == NF4
    assert packed.dtype == loaded.dtype == jnp.float32
    assert isinstance(packed.params["blocks_0"]["mlp_block"]["up_proj"]["weight"], QuantizedTensor)
    assert isinstance(lm.params["blocks_0"]["mlp_block"]["up_proj"]["weight"], jax.Array)


def test_a_packed_model_computes_with_its_dequantized_weights():
    packed = griffin_jax.quantize(language_model(), NF4)
    params = jax.tree.map(
        lambda x: dequantize(x) if isinstance(x, QuantizedTensor) else x,
        packed.params,
        is_leaf=lambda x: isinstance(x, QuantizedTensor),
    )
    whole = dataclasses.replace(packed, params=params)
    tokens = [TOKENIZER.encode("some text")]
    expected = np.asarray(whole.apply(tokens)[0])
    np.testing.assert_allclose(
        packed.apply(tokens)[0], expected, atol=1e-5 * np.abs(expected).max(), rtol=0
    )


def test_a_folder_in_4_bits_loads_as_it_is_and_as_nothing_else(folder, tmp_path):
    settings = dataclasses.replace(NF4, bnb_4bit_compute_dtype="float16")
    packed = griffin_jax.quantize(griffin_jax.load(folder), settings)
    griffin_jax.save(packed, tmp_path / "packed")
    back = griffin_jax.load(tmp_path / "packed", quantization=settings)
    assert_same_tree(
        back.params["blocks_0"]["mlp_block"]["up_proj"]["weight"],
        packed.params["blocks_0"]["mlp_block"]["up_proj"]["weight"],
    )
    assert griffin_jax.load(tmp_path / "packed").quantization == settings
    fp4 = griffin_jax.QuantizationConfig(bnb_4bit_quant_type="fp4")
    for call in (
        lambda: griffin_jax.load(tmp_path / "packed", quantization=fp4),
        lambda: griffin_jax.quantize(packed, fp4),
    ):
        with pytest.raises(CheckpointError, match="weight is packed already, as nf4") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_float16_is_computed_in_when_it_is_asked_for_and_only_then(folder):
    settings = dataclasses.replace(NF4, bnb_4bit_compute_dtype="float16")
    assert griffin_jax.load(folder, quantization=settings).dtype == jnp.bfloat16
    asked = griffin_jax.load(folder, quantization=settings, dtype="float16")
    assert asked.dtype == jnp.float16
    assert asked.params["embedder"]["embedding"].dtype == jnp.float16
    assert len(asked.sample([[5, 6]], max_new_tokens=2)[0].tokens) == 2


@pytest.mark.slow
def test_overflow_in_float16_is_told_in_one_line_and_other_dtypes_have_room():
    params = dict(language_model().params)
    up = params["blocks_0"]["mlp_block"]["up_proj"]
    up = up | {"weight": up["weight"] * 1e5}
    params["blocks_0"] = params["blocks_0"] | {
        "mlp_block": params["blocks_0"]["mlp_block"] | {"up_proj": up}
    }
    lm = griffin_jax.LanguageModel(CONFIG, params, dtype="float16")
    for call in (lambda lm: lm.sample([[5, 6, 7]]), lambda lm: lm.score([([5, 6, 7], [8])])):
        with pytest.raises(ValueError, match="overflow float16") as caught:
            call(lm)
        assert "\n" not in str(caught.value)
        call(dataclasses.replace(lm, dtype=jnp.float32))


@pytest.mark.slow
def test_stacked_layers_load_sample_pack_and_save_like_others(tmp_path):
    lm = griffin_jax.load(BUNDLED, dtype="float32")
    stacked = griffin_jax.load(BUNDLED, dtype="float32", stack_layers=True)
    assert is_stacked(stacked.params) and not is_stacked(lm.params)
    assert_same_tree(unstack_params(lm.config, stacked.params), lm.params)
    prompt = [[5, 7, 11]]
    expected = lm.sample(prompt, max_new_tokens=6)[0]
    assert stacked.sample(prompt, max_new_tokens=6)[0].tokens == expected.tokens
    griffin_jax.save(stacked, tmp_path / "saved")
    assert_same_tree(griffin_jax.load(tmp_path / "saved", dtype="float32").params, lm.params)
    settings = QuantizationConfig.from_dict(lm.quantization.to_dict())
    assert is_stacked(griffin_jax.quantize(stacked, settings).params)
