"""The texts of the engine against the plain model over whole texts."""

import numpy as np
import pytest

from griffin_jax.inference import Engine, SamplingConfig
from griffin_jax.inference.decode import row_keys
from tests.inference.comparisons import (
    PROMPTS,
    TOKENIZER,
    WARM,
    assert_reads_on_like_its_text,
    assert_same_samples,
    ended,
    log_softmax,
    samples,
)
from tests.inference.tiny_model import CONFIG, EOS, WINDOW, language_model, plain_logits


@pytest.fixture(scope="module")
def lm():
    return language_model()


# Some of four rows draw a stop token and some do not.
SOME_STOP = {"sampling": SamplingConfig(temperature=3.0), "max_new_tokens": 60}


def test_greedy_text_is_the_argmax_of_the_plain_model_at_every_step(lm):
    assert len(PROMPTS[2]) > 5 * WINDOW
    for prompt, sample in zip(PROMPTS, samples(lm, PROMPTS, max_new_tokens=40), strict=True):
        logits = plain_logits((*prompt, *sample.tokens))[len(prompt) - 1 :]
        *expected, following = logits.argmax(-1).tolist()
        assert sample.tokens == expected
        assert (sample.finish_reason == "stop") == (following in TOKENIZER.stop_ids)
        assert (sample.finish_reason == "length") == (len(sample.tokens) == 40)
        assert sample.text == TOKENIZER.decode(sample.tokens)


def test_log_probabilities_are_those_of_the_plain_model(lm):
    sampling = SamplingConfig(temperature=0.7, top_k=9)
    options = {"sampling": sampling, "max_new_tokens": 30, "logprobs": 3}
    (sample,) = samples(lm, [PROMPTS[1]], **options)
    logits = plain_logits((*PROMPTS[1], *sample.tokens))[len(PROMPTS[1]) - 1 :]
    for row, token, logprob, top in zip(
        logits, sample.tokens, sample.logprobs, sample.top_logprobs, strict=False
    ):
        expected = log_softmax(row)
        np.testing.assert_allclose(logprob, expected[token], atol=1e-4)
        assert [t for t, _ in top] == np.argsort(-row)[:3].tolist()
        np.testing.assert_allclose([p for _, p in top], np.sort(expected)[::-1][:3], atol=1e-4)


def test_a_row_with_a_seed_of_its_own_gives_what_it_gives_alone(lm):
    options = {"sampling": WARM, "max_new_tokens": 30}
    together = samples(lm, PROMPTS, seeds=[5, 6, 7], **options)
    for prompt, seed, sample in zip(PROMPTS, (5, 6, 7), together, strict=True):
        assert_same_samples(samples(lm, [prompt], seeds=[seed], slots=1, **options), [sample])
        assert_same_samples(lm.sample([prompt], seed=seed, **options), [sample])


def test_one_seed_gives_equal_prompts_different_texts_again_and_again(lm):
    options = {"sampling": WARM, "max_new_tokens": 30}
    first = lm.sample([PROMPTS[1]] * 4, seed=1, **options)
    assert len({sample.text for sample in first}) == 4
    assert_same_samples(lm.sample([PROMPTS[1]] * 4, seed=1, **options), first)
    other = lm.sample([PROMPTS[1]] * 4, seed=2, **options)
    assert other[0].text != first[0].text


def test_the_size_of_bursts_does_not_matter(lm):
    expected = lm.sample(PROMPTS, sampling=WARM, max_new_tokens=30, seed=3)
    keys = row_keys(3, 3)
    with lm.engine(slots=4, seconds=None, fill_first=True) as engine:
        requests = [
            engine.submit(prompt, 30, sampling=WARM, seed=key)
            for prompt, key in zip(PROMPTS, keys, strict=True)
        ]
        limits = iter((1, 2, 16, 5, 16))
        while not all(request.ended for request in requests):
            bursts = engine.stats.bursts
            while engine.stats.bursts == bursts and engine.step(next(limits, 16)):
                pass
            engine.settle()
    assert_same_samples([request.result() for request in requests], expected)


def test_a_stop_token_ends_a_row_without_being_part_of_it(lm):
    found = lm.sample([PROMPTS[1]] * 4, **SOME_STOP)
    assert {sample.finish_reason for sample in found} == {"stop", "length"}
    for sample in found:
        assert not set(sample.tokens) & set(TOKENIZER.stop_ids)
        assert len(sample.tokens) == len(sample.logprobs)
        assert (len(sample.tokens) == 60) == (sample.finish_reason == "length")


def test_the_state_of_a_finished_row_is_that_of_its_text_alone(lm):
    requests = ended(lm, [PROMPTS[1]] * 4, seeds=row_keys(0, 4), **SOME_STOP)
    assert {request.finish_reason for request in requests} == {"stop", "length"}
    for request in requests:
        assert_reads_on_like_its_text(request.context())


def test_stop_strings_that_straddle_tokens_cut_text_tokens_and_state(lm):
    options = {"max_new_tokens": 60, "sampling": WARM}
    (free,) = samples(lm, [PROMPTS[1]], seeds=[9], **options)
    stop = free.text[21:24]
    cut = free.text.index(stop)
    requests = ended(lm, [PROMPTS[1], *PROMPTS], seeds=[9, 1, 2, 3], stop=["\0\0", stop], **options)
    sample = requests[0].result()
    assert sample.text == free.text[:cut]
    assert sample.finish_reason == "stop"
    assert sample.tokens == free.tokens[: len(sample.tokens)]
    assert TOKENIZER.decode(sample.tokens) == sample.text
    np.testing.assert_allclose(sample.logprobs, free.logprobs[: len(sample.tokens)], atol=1e-4)
    for request in requests:
        assert_reads_on_like_its_text(request.context())


def test_going_on_from_a_context_equals_reading_everything_again(lm):
    begun = [request.context() for request in ended(lm, PROMPTS, max_new_tokens=7)]
    more = [[80], [81, 82], [83] * 40]
    went_on = samples(lm, more, contexts=begun, max_new_tokens=12)
    whole = [[*text.tokens, *prompt] for text, prompt in zip(begun, more, strict=True)]
    assert_same_samples(went_on, samples(lm, whole, max_new_tokens=12))


def test_a_text_cut_by_length_goes_on_without_a_prompt(lm):
    contexts = [request.context() for request in ended(lm, PROMPTS, max_new_tokens=10)]
    rest = samples(lm, [[], [], []], contexts=contexts, max_new_tokens=15)
    whole = samples(lm, PROMPTS, max_new_tokens=25)
    assert [s.tokens for s in rest] == [s.tokens[10:] for s in whole]


def test_a_context_forks_and_is_never_overwritten(lm):
    (request,) = ended(lm, [PROMPTS[1]], max_new_tokens=5)
    context = request.context()
    hot = {"sampling": SamplingConfig(temperature=5.0), "max_new_tokens": 10}
    forks = {"contexts": [context] * 4, "seeds": [1, 2, 3, 4]}
    first = samples(lm, [[80]] * 4, **forks, **hot)
    assert len({sample.text for sample in first}) == 4
    assert_same_samples(samples(lm, [[80]] * 4, **forks, **hot), first)
    alone = lm.sample([[80]], context=context, seed=[2], **hot)
    assert_same_samples(alone, first[1:2])


def test_a_text_that_was_read_goes_on_like_one_that_is_read_with_its_prompt(lm):
    context = lm.read("far beyond the window " * 2)
    assert (context.tokens, context.read) == (tuple(PROMPTS[2]), len(PROMPTS[2]) - 1)
    assert_reads_on_like_its_text(context)
    more = " and on"
    (expected,) = lm.sample(["far beyond the window " * 2 + more], max_new_tokens=9)
    assert_same_samples(lm.sample([more], context=context, max_new_tokens=9), [expected])
    assert "".join(lm.stream(more, context=context, max_new_tokens=9)) == expected.text


def test_the_repetition_penalty_covers_prompt_and_text(lm):
    sampling = SamplingConfig(repetition_penalty=1e6)
    (sample,) = lm.sample([PROMPTS[1]], sampling=sampling, max_new_tokens=30)
    assert len({*sample.tokens}) == len(sample.tokens)
    assert not {*sample.tokens} & {*PROMPTS[1]}


def test_streamed_pieces_join_to_the_sampled_text_and_the_first_token_comes_at_once(lm):
    options = {"sampling": WARM, "max_new_tokens": 50, "seed": 4}
    (sample,) = lm.sample([PROMPTS[0]], **options)
    stop = sample.text[-6:-3]
    (cut,) = lm.sample([PROMPTS[0]], stop=stop, **options)
    assert "".join(lm.stream(PROMPTS[0], **options)) == sample.text
    assert "".join(lm.stream(PROMPTS[0], stop=stop, **options)) == cut.text
    with lm.engine(slots=1) as engine:
        request = engine.submit(PROMPTS[0], **options)
        next(iter(request))
        assert request.num_tokens <= 4  # a character's bytes


def test_a_request_that_is_cancelled_leaves_a_state_that_fits_its_tokens(lm):
    with lm.engine(slots=1) as engine:
        request = engine.submit(PROMPTS[1], 30, sampling=WARM, seed=4, keep_context=True)
        next(iter(request))
        assert request.cancel()  # with a burst under way
        sample = request.result()
    assert sample.finish_reason == "cancelled"
    context = request.context()
    assert context.tokens == (*PROMPTS[1], *sample.tokens)
    assert context.read == len(context.tokens) - 1
    (rest,) = lm.sample([[]], context=context, max_new_tokens=10)
    (whole,) = lm.sample([context.tokens], max_new_tokens=10)
    assert_same_samples([rest], [whole])


def test_no_new_tokens_give_an_empty_sample(lm):
    (request,) = ended(lm, [PROMPTS[1]], max_new_tokens=0)
    sample = request.result()
    assert (sample.text, sample.tokens, sample.finish_reason) == ("", [], "length")
    assert request.context().tokens == tuple(PROMPTS[1])


UNBOUNDED = CONFIG.replace(attention_window=None, block_pattern=("attention",), num_layers=1)


def test_under_an_unbounded_window_the_state_makes_room_for_what_comes():
    lm = language_model(UNBOUNDED)
    prompt = [20] * 150 + [30, 40]
    (request,) = ended(lm, [prompt], max_new_tokens=5)
    more = [21] * 140
    (sample,) = lm.sample([more], context=request.context(), max_new_tokens=5)
    text = (*prompt, *request.result().tokens, *more, *sample.tokens)
    assert len(text) > 256
    expected = plain_logits(text, UNBOUNDED).argmax(-1)
    assert sample.tokens == expected[-6:-1].tolist()


def test_texts_that_outgrow_their_slots_go_on_as_if_they_had_always_had_them():
    lm = language_model(UNBOUNDED)
    prompts = [[20] * 240 + [30, 40], [7, 8, 9]]
    long, short = ended(lm, prompts, max_new_tokens=40, stop_ids=())
    for prompt, request in zip(prompts, (long, short), strict=True):
        tokens = request.result().tokens
        expected = plain_logits((*prompt, *tokens), UNBOUNDED).argmax(-1)
        assert tokens == expected[len(prompt) - 1 : -1].tolist()
    (block,) = long.context().state.blocks
    assert block.keys.shape[1] == 384


def test_without_a_tokenizer_tokens_come_without_text(lm):
    with Engine(CONFIG, lm.params) as engine:
        sample = engine.submit([EOS, 7], 4).result()
    assert (sample.text, len(sample.tokens), sample.finish_reason) == ("", 4, "length")


def test_taken_parts_join_to_the_result_and_never_show_part_of_a_stop_string(lm):
    prompt = PROMPTS[1]
    whole = lm.sample([prompt], 40, sampling=WARM, seed=3)[0].text
    stop = whole[20:23]
    with lm.engine(slots=1, seconds=None, burst=3) as engine:
        request = engine.submit(prompt, 40, sampling=WARM, seed=3, stop=stop, logprobs=1)
        parts = [request.take()]
        assert parts[0].text == "" and parts[0].finish_reason is None
        while not request.ended:
            engine.step()
            parts.append(request.take())
        result = request.result()
    assert "".join(part.text for part in parts) == result.text == whole[: whole.find(stop)]
    assert [t for part in parts for t in part.tokens] == result.tokens
    assert [x for part in parts for x in part.logprobs] == result.logprobs
    assert [x for part in parts for x in part.top_logprobs] == result.top_logprobs
    assert [part.finish_reason for part in parts[-2:]] == [None, "stop"]
    assert all(not part.text.endswith(stop[0]) for part in parts[:-1])
