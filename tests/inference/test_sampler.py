"""The sampler against the plain model over whole texts."""

import dataclasses

import jax
import numpy as np
import pytest

from griffin_jax.inference import Generation, Sampler, SamplingConfig
from griffin_jax.inference import sampler as sampler_module
from griffin_jax.inference.decode import draw_burst
from griffin_jax.sharding import mesh_function
from tests.inference.tiny_model import (
    CONFIG,
    EOS,
    WINDOW,
    ByteTokenizer,
    language_model,
    plain_logits,
)

TOKENIZER = ByteTokenizer()
PROMPTS = [TOKENIZER.encode(text) for text in ("x", "a short one", "far beyond the window " * 2)]
WARM = SamplingConfig(temperature=1.0)
# Of four rows some draw a stop token and some do not.
SOME_STOP = {"sampling": SamplingConfig(temperature=3.0), "max_new_tokens": 60, "seed": 0}


@pytest.fixture(scope="module")
def sampler():
    return language_model().sampler()


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def assert_same_samples(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert dataclasses.replace(one, logprobs=[]) == dataclasses.replace(other, logprobs=[])
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


def test_greedy_text_is_the_argmax_of_the_plain_model_at_every_step(sampler):
    assert len(PROMPTS[2]) > 5 * WINDOW
    samples = sampler.generate(PROMPTS, max_new_tokens=40).samples()
    for prompt, sample in zip(PROMPTS, samples, strict=True):
        logits = plain_logits((*prompt, *sample.tokens))[len(prompt) - 1 :]
        *expected, following = logits.argmax(-1).tolist()
        assert sample.tokens == expected
        assert (sample.finish_reason == "stop") == (following in TOKENIZER.stop_ids)
        assert (sample.finish_reason == "length") == (len(sample.tokens) == 40)
        assert sample.text == TOKENIZER.decode(sample.tokens)


def test_log_probabilities_are_those_of_the_plain_model(sampler):
    (sample,) = sampler.generate(
        [PROMPTS[1]], sampling=SamplingConfig(temperature=0.7, top_k=9), max_new_tokens=30
    ).samples()
    logits = plain_logits((*PROMPTS[1], *sample.tokens))[len(PROMPTS[1]) - 1 :]
    expected = [log_softmax(row)[t] for row, t in zip(logits, sample.tokens, strict=False)]
    np.testing.assert_allclose(sample.logprobs, expected, atol=1e-4)


def test_a_row_with_a_seed_of_its_own_gives_what_it_gives_alone(sampler):
    options = {"sampling": WARM, "max_new_tokens": 30}
    together = sampler.generate(PROMPTS, seed=[5, 6, 7], **options).samples()
    for prompt, seed, sample in zip(PROMPTS, (5, 6, 7), together, strict=True):
        assert_same_samples(sampler.generate([prompt], seed=[seed], **options).samples(), [sample])
        assert_same_samples(sampler.generate([prompt], seed=seed, **options).samples(), [sample])


def test_one_seed_gives_equal_prompts_different_texts_again_and_again(sampler):
    options = {"sampling": WARM, "max_new_tokens": 30}
    first = sampler.generate([PROMPTS[1]] * 4, seed=1, **options).samples()
    assert len({sample.text for sample in first}) == 4
    assert_same_samples(sampler.generate([PROMPTS[1]] * 4, seed=1, **options).samples(), first)
    other = sampler.generate([PROMPTS[1]] * 4, seed=2, **options).samples()
    assert other[0].text != first[0].text


def test_the_size_of_bursts_does_not_matter(sampler):
    expected = sampler.generate(PROMPTS, sampling=WARM, max_new_tokens=30, seed=3).samples()
    generation = sampler.start(PROMPTS, sampling=WARM, max_new_tokens=30, seed=3)
    for limit in (1, 2, 16, 5, 16):
        generation.advance(limit)
    assert generation.done
    assert_same_samples(generation.samples(), expected)


def test_a_stop_token_ends_a_row_without_being_part_of_it(sampler):
    samples = sampler.generate([PROMPTS[1]] * 4, **SOME_STOP).samples()
    assert {sample.finish_reason for sample in samples} == {"stop", "length"}
    for sample in samples:
        assert not set(sample.tokens) & set(TOKENIZER.stop_ids)
        assert len(sample.tokens) == len(sample.logprobs)
        assert (len(sample.tokens) == 60) == (sample.finish_reason == "length")


def test_the_state_of_a_finished_row_is_that_of_its_text_alone(sampler):
    generation = sampler.generate([PROMPTS[1]] * 4, **SOME_STOP)
    reasons = [sample.finish_reason for sample in generation.samples()]
    context = generation.context()
    assert_reads_on_like_its_text(context, reasons.index("stop"))
    assert_reads_on_like_its_text(context, reasons.index("length"))


def assert_reads_on_like_its_text(context, row):
    """Logits after the state of one row equal those over its whole text and the same probe."""
    tokens, read = context.tokens[row], context.read[row]
    assert context.state.position[row] == read <= len(tokens)
    probe = (*tokens[read:], 70, 71)[:2]  # one token at most is unread
    state = jax.tree.map(lambda x: x[row : row + 1], context.state)
    logits, _ = language_model().apply([probe], state)
    expected = plain_logits((*tokens[:read], *probe))[-2:]
    np.testing.assert_allclose(logits[0], expected, atol=1e-3)


def test_stop_strings_that_straddle_tokens_cut_text_tokens_and_state(sampler):
    (free,) = sampler.generate([PROMPTS[1]], max_new_tokens=60, sampling=WARM, seed=9).samples()
    stop = free.text[21:24]
    cut = free.text.index(stop)
    generation = sampler.generate(
        [PROMPTS[1], *PROMPTS],
        max_new_tokens=60,
        sampling=WARM,
        seed=[9, 1, 2, 3],
        stop=["\0\0", stop],
    )
    sample = generation.samples()[0]
    assert sample.text == free.text[:cut]
    assert sample.finish_reason == "stop"
    assert sample.tokens == free.tokens[: len(sample.tokens)]
    assert TOKENIZER.decode(sample.tokens) == sample.text
    np.testing.assert_allclose(sample.logprobs, free.logprobs[: len(sample.tokens)], atol=1e-4)
    for row in range(4):
        assert_reads_on_like_its_text(generation.context(), row)


def test_going_on_from_a_context_equals_reading_everything_again(sampler):
    begun = sampler.generate(PROMPTS, max_new_tokens=7).context()
    more = [[80], [81, 82], [83] * 40]
    went_on = sampler.generate(more, context=begun, max_new_tokens=12).samples()
    whole = [[*text, *prompt] for text, prompt in zip(begun.tokens, more, strict=True)]
    assert_same_samples(went_on, sampler.generate(whole, max_new_tokens=12).samples())


def test_a_text_cut_by_length_goes_on_without_a_prompt(sampler):
    context = sampler.generate(PROMPTS, max_new_tokens=10).context()
    rest = sampler.generate([[], [], []], context=context, max_new_tokens=15).samples()
    whole = sampler.generate(PROMPTS, max_new_tokens=25).samples()
    assert [s.tokens for s in rest] == [s.tokens[10:] for s in whole]


def test_a_context_forks_and_is_never_overwritten(sampler):
    context = sampler.generate([PROMPTS[1]], max_new_tokens=5).context()
    fork = context.rows([0] * 4)
    hot = SamplingConfig(temperature=5.0)
    options = {"sampling": hot, "max_new_tokens": 10, "seed": [1, 2, 3, 4]}
    first = sampler.generate([[80]] * 4, context=fork, **options).samples()
    assert len({sample.text for sample in first}) == 4
    assert_same_samples(sampler.generate([[80]] * 4, context=fork, **options).samples(), first)
    alone = sampler.generate([[80]], context=context, sampling=hot, max_new_tokens=10, seed=[2])
    assert_same_samples(alone.samples(), first[1:2])


def test_the_repetition_penalty_covers_prompt_and_text(sampler):
    sampling = SamplingConfig(repetition_penalty=1e6)
    (sample,) = sampler.generate([PROMPTS[1]], sampling=sampling, max_new_tokens=30).samples()
    assert len({*sample.tokens}) == len(sample.tokens)
    assert not {*sample.tokens} & {*PROMPTS[1]}


def test_streamed_pieces_join_to_the_sampled_text_and_the_first_token_comes_at_once(sampler):
    options = {"sampling": WARM, "max_new_tokens": 50, "seed": 4}
    (sample,) = sampler.generate([PROMPTS[0]], **options).samples()
    stop = sample.text[-6:-3]
    (cut,) = sampler.generate([PROMPTS[0]], stop=stop, **options).samples()
    assert "".join(sampler.stream(PROMPTS[0], **options)) == sample.text
    assert "".join(sampler.stream(PROMPTS[0], stop=stop, **options)) == cut.text
    generation = sampler.start([PROMPTS[0]], **options)
    next(generation.stream())
    assert len(generation.samples()[0].tokens) <= 4  # a character's bytes


def test_a_stream_that_is_left_leaves_a_state_that_fits_its_tokens(sampler):
    options = {"sampling": WARM, "max_new_tokens": 30, "seed": 4}
    generation = sampler.start([PROMPTS[1]], **options)
    pieces = generation.stream()
    next(pieces)
    pieces.close()  # with a burst under way
    context, written = generation.context(), generation.samples()[0].tokens
    assert len(context.tokens[0]) == len(PROMPTS[1]) + len(written)
    assert context.read == (len(context.tokens[0]) - 1,)
    (rest,) = sampler.generate([[]], context=context, max_new_tokens=10).samples()
    (whole,) = sampler.generate([context.tokens[0]], max_new_tokens=10).samples()
    assert_same_samples([rest], [whole])


def test_the_device_is_a_burst_ahead_unless_a_stop_string_may_end_the_text(sampler, monkeypatch):
    log = []
    for name in ("_dispatch", "_receive"):
        method = getattr(Generation, name)

        def logged(self, argument, name=name, method=method):
            log.append(name[1])
            return method(self, argument)

        monkeypatch.setattr(Generation, name, logged)
    options = {"sampling": WARM, "max_new_tokens": 3 * sampler.burst, "seed": 4}
    (ahead,) = sampler.generate([PROMPTS[0]], **options).samples()
    assert "".join(log) == "ddrdrr"
    log.clear()
    (behind,) = sampler.generate([PROMPTS[0]], stop="\0never", **options).samples()
    assert "".join(log) == "drdrdr"
    assert_same_samples([ahead], [behind])


@pytest.mark.parametrize("milliseconds, longest", [(1, 16), (20, 5), (500, 1)])
def test_a_streamed_burst_takes_about_a_tenth_of_a_second(
    sampler, monkeypatch, milliseconds, longest
):
    clock, steps = [0.0], []
    receive = Generation._receive

    def received(self, burst):
        steps.append(burst.steps)
        clock[0] += burst.steps * milliseconds / 1000
        receive(self, burst)

    monkeypatch.setattr(Generation, "_receive", received)
    monkeypatch.setattr(sampler_module.time, "monotonic", lambda: clock[0])
    (expected,) = sampler.generate([PROMPTS[0]], max_new_tokens=60).samples()
    steps.clear()
    pieces = []
    for piece in sampler.stream(PROMPTS[0], max_new_tokens=60):
        pieces.append(piece)
        clock[0] += 100  # the reader's own time, which does not count
    assert "".join(pieces) == expected.text
    assert steps[0] == 1 and max(steps) == longest


def test_bursts_of_any_length_run_in_one_program(sampler):
    sampler.generate([PROMPTS[0]], max_new_tokens=2)
    warm = draw_burst._cache_size()
    for count in (1, 7, 40):
        sampler.generate([PROMPTS[0]], max_new_tokens=count, stop="q")
        list(sampler.stream(PROMPTS[1], max_new_tokens=count))
    assert draw_burst._cache_size() == warm


def test_compiled_as_for_a_gpu_a_burst_draws_the_same(sampler, monkeypatch):
    options = {"max_new_tokens": 20, "sampling": WARM, "seed": 3}
    expected = sampler.generate(PROMPTS, **options).samples()
    monkeypatch.setattr(mesh_function, "platform", lambda: "gpu")
    assert_same_samples(sampler.generate(PROMPTS, **options).samples(), expected)
    assert draw_burst._jitted_for_one_gpu._cache_size() > 0


def test_no_new_tokens_give_an_empty_sample(sampler):
    generation = sampler.generate([PROMPTS[1]], max_new_tokens=0)
    (sample,) = generation.samples()
    assert (sample.text, sample.tokens, sample.finish_reason) == ("", [], "length")
    assert generation.context().tokens == (tuple(PROMPTS[1]),)


def test_under_an_unbounded_window_the_state_makes_room_for_what_comes():
    config = CONFIG.replace(attention_window=None, block_pattern=("attention",), num_layers=1)
    sampler = language_model(config).sampler()
    prompt = [20] * 150 + [30, 40]
    generation = sampler.generate([prompt], max_new_tokens=5)
    more = [21] * 140
    (sample,) = sampler.generate([more], context=generation.context(), max_new_tokens=5).samples()
    text = (*prompt, *generation.samples()[0].tokens, *more, *sample.tokens)
    assert len(text) > 256
    expected = plain_logits(text, config).argmax(-1)
    assert sample.tokens == expected[-6:-1].tolist()


def test_a_text_that_outgrows_its_slots_goes_on_as_if_it_had_always_had_them():
    config = CONFIG.replace(attention_window=None, block_pattern=("attention",), num_layers=1)
    lm = language_model(config)
    prompt = [20] * 240 + [30, 40]
    generation = Sampler(config, lm.params).generate([prompt], max_new_tokens=40)
    (sample,) = generation.samples()
    expected = plain_logits((*prompt, *sample.tokens), config).argmax(-1)
    assert sample.tokens == expected[len(prompt) - 1 : -1].tolist()
    (block,) = generation.context().state.blocks
    assert block.keys.shape[1] == 384


def test_without_a_tokenizer_tokens_come_without_text():
    lm = language_model()
    generation = Sampler(CONFIG, lm.params).generate([[EOS, 7]], max_new_tokens=4)
    (sample,) = generation.samples()
    assert (sample.text, len(sample.tokens), sample.finish_reason) == ("", 4, "length")


@pytest.mark.parametrize(
    "prompts, options, message",
    [
        ([], {}, "no prompts"),
        ([[5], []], {}, "prompt 1 is empty"),
        ([[5, 261]], {}, "prompt 0 holds token 261; ids are 0 to 260"),
        ([[-1]], {}, "prompt 0 holds token -1"),
        ([[5]], {"max_new_tokens": -1}, "a whole number of at least 0, got -1"),
        ([[5]], {"max_new_tokens": 1.5}, "a whole number of at least 0, got 1.5"),
        ([[5]], {"stop": ["a", ""]}, "stop must hold strings, none of them empty, got ''"),
        ([[5]], {"stop": [7]}, "stop must hold strings, none of them empty, got 7"),
        ([[5.5]], {}, "prompt 0 holds token 5.5"),
        ([[5]], {"seed": -1}, "seed must be"),
        ([[5]], {"seed": 2**32}, "seed must be"),
        ([[5]], {"seed": 0.5}, "seed must be"),
        ([[5]], {"seed": [1, 2]}, "2 seeds for 1 prompts"),
    ],
)
def test_wrong_input_is_named_in_one_line(sampler, prompts, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        sampler.start(prompts, **options)
    assert "\n" not in str(caught.value)
