"""The adapter on a tiny model over bytes, against the plain model."""

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model

from griffin_jax import LanguageModel
from griffin_jax.checkpoints import BUNDLED, find_folder
from griffin_jax.config import TINY
from griffin_jax.evaluation.harness import GriffinLM
from griffin_jax.inference import SamplingConfig, prefill
from griffin_jax.inference.drawing import settings_of
from griffin_jax.tokenizer import load_tokenizer
from tests.inference.test_scoring import expected_score
from tests.inference.tiny_model import BOS, language_model

PREFIX = "A few questions with their answers, which all the others share.\n" * 2
CHOICES = [
    (PREFIX + "What is a lamp?\nAnswer:", [" A", " B", " C", " D"]),
    (PREFIX + "What is a spoon? It is long, and is asked at length.\nAnswer:", [" A", " B"]),
    ("The sea is ", ["wide", "deep and cold"]),  # the space belongs to the choice
    ("", ["All by itself.", "x"]),
]
PAIRS = [(context, choice) for context, choices in CHOICES for choice in choices]


@pytest.fixture(autouse=True, scope="module")
def short_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "CHUNKS", (8, 32))
        yield


def adapter(**options):
    return GriffinLM(lm=language_model(), batch_size=4, **options)


def ask(method, *arguments):
    return [Instance(method, {}, args, i) for i, args in enumerate(arguments)]


def choose(lm, pairs):
    return lm.loglikelihood(ask("loglikelihood", *pairs), disable_tqdm=True)


def write(lm, *contexts, **settings):
    requests = ask("generate_until", *((context, settings) for context in contexts))
    return lm.generate_until(requests, disable_tqdm=True)


def test_log_likelihoods_are_those_of_the_plain_model_behind_one_bos():
    encode = language_model().tokenizer.encode
    for (context, choice), (log_likelihood, greedy) in zip(
        PAIRS, choose(adapter(), PAIRS), strict=True
    ):
        whole = encode(context + choice)
        assert whole.count(BOS) == 1
        before = len(encode(context.rstrip()))
        expected, expected_greedy = expected_score(whole[:before], whole[before:])
        np.testing.assert_allclose(log_likelihood, expected, rtol=1e-5, atol=1e-4)
        assert greedy == expected_greedy


def test_a_context_that_begins_with_bos_gets_no_second_one():
    lm = adapter()
    assert choose(lm, [("<bos>The sea", " A")]) == choose(lm, [("The sea", " A")])


@pytest.mark.parametrize(
    ("context", "continuation"),
    [
        ("The cat ", "sat on the mat."),
        ("The cat ", "sat"),  # one piece with the blank
        ("The cat", " sat"),
        ("two blanks  ", "then words"),
        ("Is it?\n", "Yes"),
        ("Is it?\n\n ", " Yes"),
        ("a tab\t", "and more"),
        ("under", "stand it"),  # the words join, and the context's last piece is another one
        ("  ", "all blank before"),
        ("quite", "quiet "),
    ],
)
def test_texts_are_cut_as_the_harness_cuts_them(context, continuation):
    tokenizer = load_tokenizer(find_folder(BUNDLED))
    lm = LanguageModel(TINY.replace(vocab_size=tokenizer.vocab_size), {}, tokenizer)
    expected = GriffinLM(lm=lm)._encode_pair(context, continuation)
    assert lm.tokenizer.encode_pair(context, continuation) == expected
    assert expected[1]


@pytest.mark.parametrize("batch_size", [1, 32])
def test_batch_size_and_order_change_nothing(batch_size):
    expected = choose(adapter(), PAIRS)
    order = np.random.default_rng(0).permutation(len(PAIRS))
    other = GriffinLM(lm=language_model(), batch_size=batch_size)
    for i, (log_likelihood, greedy) in zip(
        order, choose(other, [PAIRS[i] for i in order]), strict=True
    ):
        np.testing.assert_allclose(log_likelihood, expected[i][0], rtol=1e-6, atol=1e-5)
        assert greedy == expected[i][1]


def test_a_shared_context_is_read_once_and_one_token_choices_need_no_call():
    lm = adapter()
    choose(lm, PAIRS[:4])
    assert lm.work.tokens == len(language_model().tokenizer.encode(PAIRS[0][0] + " "))
    assert lm.work.alone == 4 * lm.work.tokens


def test_rolling_log_likelihoods_carry_the_state_through_texts_of_any_length():
    texts = ["A text. " * 30, "", "short", "<"]
    found = adapter(max_length=16).loglikelihood_rolling(
        ask("loglikelihood_rolling", *((text,) for text in texts)), disable_tqdm=True
    )
    encode = language_model().tokenizer.encode
    for text, log_likelihood in zip(texts, found, strict=True):
        expected = expected_score([BOS], encode(text, bos=False))[0] if text else 0.0
        np.testing.assert_allclose(log_likelihood, expected, rtol=1e-5, atol=1e-4)


def test_texts_end_before_the_first_stop_string_even_one_that_begins_within_a_token():
    lm = adapter()
    (whole,) = write(lm, "Tell me", until=[], max_gen_toks=40)
    assert len(whole) > 8
    stop = whole[5:7]
    assert write(lm, "Tell me", until=[stop], max_gen_toks=40) == [whole.split(stop)[0]]
    assert write(lm, "Tell me", until=stop, max_gen_toks=40) == [whole.split(stop)[0]]


@pytest.mark.slow
def test_texts_do_not_depend_on_what_is_written_beside_them():
    contexts = [PREFIX + "What?", PREFIX + "Who is it?", "x", PREFIX + "What?"]
    for settings in ({}, {"do_sample": True, "temperature": 1.5}):
        together = write(adapter(), *contexts, until=["\n"], max_gen_toks=6, **settings)
        backward = write(adapter(), *contexts[::-1], until=["\n"], max_gen_toks=6, **settings)
        assert together[1:3] == backward[-2:-4:-1]
        # Repeats of one request are drawn anew where texts are drawn at all.
        assert sorted(together) == sorted(backward)
        assert (together[0] == together[3]) == (not settings)
        for context, text in list(zip(contexts, together, strict=True))[:3]:
            assert write(adapter(), context, until=["\n"], max_gen_toks=6, **settings) == [text]


def test_what_max_length_leaves_no_room_for_is_cut_behind_bos_and_said(caplog):
    lm = adapter(max_length=20)
    context = "0123456789" * 4
    # The last of 44 tokens behind BOS is not read.
    pairs = [(context, " yes"), ("0", " yes"), ("", context)]
    cut = choose(lm, pairs[:2])
    assert cut == choose(adapter(), [(context[-16:], " yes"), ("0", " yes")])
    assert lm.tokens_cut(ask("loglikelihood", *pairs[:2])) == [24]
    said = "1 of 2 prompts are longer than max_length 20 and lose up to 24 tokens after BOS"
    assert said in caplog.text
    with pytest.raises(ValueError, match="no room for a context beside 39 further tokens"):
        lm.tokens_cut(ask("loglikelihood", *pairs))
    settings = {"until": [], "max_gen_toks": 8}
    assert write(lm, context, **settings) == write(adapter(), context[-11:], **settings)
    assert lm.tokens_cut(ask("generate_until", (context, settings), ("0", settings))) == [29]
    assert adapter().tokens_cut(ask("loglikelihood", *pairs)) == []


def test_a_chat_is_written_in_gemmas_turns_and_an_answer_begun_stays_open():
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " What is a lamp? "},
    ]
    asked = "<start_of_turn>user\nBe brief.\n\nWhat is a lamp?<end_of_turn>\n<start_of_turn>model\n"
    lm = adapter()
    assert lm.apply_chat_template(chat) == asked
    begun = [*chat, {"role": "assistant", "content": "The answer is "}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == asked + "The answer is"
    ids = lm.tok_encode(asked)
    assert (ids[0], ids.count(BOS)) == (BOS, 1)


class Killed(Exception):
    pass


def test_answers_are_kept_as_they_come_and_not_asked_for_again(tmp_path, monkeypatch):
    expected = choose(adapter(), PAIRS)
    lm = adapter()
    stopped = CachingLM(lm, str(tmp_path / "answers.db"))
    keep, told = lm.cache_hook.add_partial, []

    def kill(*args):
        keep(*args)
        told.append(args)
        if len(told) == 6:
            raise Killed

    monkeypatch.setattr(lm.cache_hook, "add_partial", kill)
    with pytest.raises(Killed):
        stopped.loglikelihood(ask("loglikelihood", *PAIRS))
    stopped.dbdict.close()
    again = adapter()
    going_on = CachingLM(again, str(tmp_path / "answers.db"))
    found = going_on.loglikelihood(ask("loglikelihood", *PAIRS))
    np.testing.assert_allclose([p for p, _ in found], [p for p, _ in expected], atol=1e-4)
    assert again.work.alone < lm.work.alone
    read = again.work.tokens
    assert read > 0
    going_on.loglikelihood(ask("loglikelihood", *PAIRS))
    assert again.work.tokens == read
    going_on.dbdict.close()


def test_the_harness_knows_the_model_by_name_and_makes_it_of_its_arguments():
    lm = get_model("griffin_jax").create_from_arg_string(
        "checkpoint=griffin-tiny,dtype=float32,max_length=512", {"batch_size": "auto"}
    )
    assert isinstance(lm, GriffinLM)
    assert (lm.lm.dtype.name, lm.max_length, lm.batch_size) == ("float32", 512, 32)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pretrained": "x"}, "no model argument 'pretrained'; there are checkpoint"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_length": 0}, "max_length must be at least 1"),
        ({"checkpoint": "griffin-tiny"}, "give --model_args checkpoint=FOLDER"),
    ],
)
def test_wrong_model_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GriffinLM(lm=language_model(), **options)


def test_generation_arguments_that_change_nothing_are_taken():
    """What lm-evaluation-harness's tasks and users pass on, and transformers takes."""
    lm = adapter()
    plain = write(lm, "x", until=[], max_gen_toks=4)
    for more in (
        {"num_beams": 1},
        {"num_beams": 1.0, "length_penalty": 2.0, "early_stopping": True},
        {"do_sample": False, "top_k": 0, "top_p": 1.0, "typical_p": 1.0},
        {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": None},
        {"guidance_scale": 1, "use_cache": False, "renormalize_logits": True},
        {"of_tomorrow": None, "or_never": False},
        {"eos_token_id": lm.eot_token_id},
    ):
        assert write(lm, "x", until=[], max_gen_toks=4, **more) == plain
    drawn = write(lm, "x", until=[], max_gen_toks=4, do_sample=True, temperature=0.7)
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    settings = {"do_sample": True, "temperature": 0.7}
    found, *_ = lm._drawing({"until": [], **settings, **off})
    assert settings_of(found) == settings_of(SamplingConfig(temperature=0.7))
    assert drawn


@pytest.mark.parametrize(
    "argument",
    [
        {"num_beams": 4},
        {"num_beams": True},
        {"typical_p": 0.9},
        {"no_repeat_ngram_size": 3},
        {"min_new_tokens": 2},
        {"bad_words_ids": [[5]]},
        {"forced_eos_token_id": 1},
        {"guidance_scale": 1.5},
        {"penalty_alpha": 0.6},
        {"suppress_tokens": [3]},
        {"eos_token_id": 7},
        {"max_time": 5.0},
        {"of_tomorrow": 1},
    ],
)
def test_generation_arguments_that_change_the_text_are_refused_by_name(argument):
    (name,) = argument
    with pytest.raises(ValueError, match=f"generation arguments: {name}="):
        write(adapter(), "x", until=[], **argument)


def test_wrong_requests_are_named():
    lm = adapter(max_length=8)
    with pytest.raises(ValueError, match=r"generation arguments: num_beams=4 \(only 1 is"):
        write(lm, "x", until=[], num_beams=4)
    with pytest.raises(ValueError, match="max_length 8 has no room for a prompt beside 8 further"):
        write(lm, "x" * 20, until=[], max_gen_toks=8)
    with pytest.raises(ValueError, match="'' adds no token of its own after 'x'"):
        choose(lm, [("x", "")])
