"""The engine against the plain model over whole texts, and each request against itself alone."""

import dataclasses
import threading

import jax
import numpy as np
import pytest

from griffin_jax.inference import Engine, EngineClosed, EngineFull, SamplingConfig
from griffin_jax.inference import pool as pool_module
from griffin_jax.inference.decode import draw_burst, row_keys
from griffin_jax.inference.engine import BURST
from griffin_jax.inference.pool import Pool
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
# Some of four rows draw a stop token and some do not.
SOME_STOP = {"sampling": SamplingConfig(temperature=3.0), "max_new_tokens": 60}


@pytest.fixture(scope="module")
def lm():
    return language_model()


def ended(lm, prompts, seeds=None, contexts=None, slots=4, **options):
    """Requests that have ended, of one engine."""
    with lm.engine(slots=slots, seconds=None, fill_first=True) as engine:
        requests = [
            engine.submit(
                prompt,
                seed=0 if seeds is None else seeds[i],
                context=None if contexts is None else contexts[i],
                keep_context=True,
                **options,
            )
            for i, prompt in enumerate(prompts)
        ]
        engine.run()
    return requests


def samples(*args, **options):
    return [request.result() for request in ended(*args, **options)]


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def assert_same_samples(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        plain = [dataclasses.replace(x, logprobs=[], top_logprobs=None) for x in (one, other)]
        assert plain[0] == plain[1]
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


def assert_reads_on_like_its_text(context):
    """Logits after a context equal those over its whole text and the same probe."""
    tokens, read = context.tokens, context.read
    assert context.state.position.tolist() == [read]
    assert read <= len(tokens)
    probe = (*tokens[read:], 70, 71)[:2]  # one token at most is unread
    logits, _ = language_model().apply([probe], context.state)
    expected = plain_logits((*tokens[:read], *probe))[-2:]
    np.testing.assert_allclose(logits[0], expected, atol=1e-3)


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


@pytest.fixture
def log(monkeypatch):
    """A letter for each burst that was dispatched and each that came in."""
    letters = []

    def follow(name, letter):
        method = getattr(Pool, name)

        def logged(self, *args):
            result = method(self, *args)
            if result is not None:
                letters.append(letter)
            return result

        monkeypatch.setattr(Pool, name, logged)

    follow("draw", "d")
    follow("fetch", "r")
    return letters


def test_the_device_is_a_burst_ahead_also_where_a_stop_string_may_end_the_text(lm, log):
    options = {"sampling": WARM, "max_new_tokens": 3 * BURST, "seed": 4}
    (plain,) = lm.sample([PROMPTS[0]], **options)
    assert "".join(log) == "ddrdrr"
    log.clear()
    (stopped,) = lm.sample([PROMPTS[0]], stop="\0never", **options)
    assert "".join(log) == "ddrdrr"
    assert_same_samples([plain], [stopped])


@pytest.mark.parametrize("milliseconds, longest", [(1, 16), (20, 5), (500, 1)])
def test_a_streamed_burst_takes_about_a_tenth_of_a_second(lm, monkeypatch, milliseconds, longest):
    (expected,) = lm.sample([PROMPTS[0]], max_new_tokens=60)
    clock, steps = [0.0], []
    fetch = jax.device_get
    draw = Pool.draw

    def drawn(self, limit):
        burst = draw(self, limit)
        if burst is not None:
            steps.append(burst.steps)
        return burst

    def fetched(arrays):
        clock[0] += steps[len(times)] * milliseconds / 1000
        times.append(clock[0])
        return fetch(arrays)

    times = []
    monkeypatch.setattr(Pool, "draw", drawn)
    monkeypatch.setattr(pool_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(pool_module.jax, "device_get", fetched)
    pieces = []
    for piece in lm.stream(PROMPTS[0], max_new_tokens=60):
        pieces.append(piece)
        clock[0] += 100  # the reader's own time, which does not count
    assert "".join(pieces) == expected.text
    assert steps[0] == 1 and max(steps) == longest


def test_bursts_of_any_length_run_in_one_program(lm):
    lm.sample([PROMPTS[0]], max_new_tokens=2)
    warm = draw_burst._cache_size()
    for count in (1, 7, 40):
        lm.sample([PROMPTS[0]], max_new_tokens=count, stop="q")
        list(lm.stream(PROMPTS[1], max_new_tokens=count))
    assert draw_burst._cache_size() == warm


def test_compiled_as_for_a_gpu_a_burst_draws_the_same(lm, monkeypatch):
    options = {"max_new_tokens": 20, "sampling": WARM, "seed": 3}
    expected = lm.sample(PROMPTS, **options)
    monkeypatch.setattr(mesh_function, "platform", lambda: "gpu")
    assert_same_samples(lm.sample(PROMPTS, **options), expected)
    assert draw_burst._jitted_for_one_gpu._cache_size() > 0


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


MIXED = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 9},
    {"temperature": 1.5, "top_p": 0.8, "min_p": 0.01},
    {"repetition_penalty": 1.3},
    {"temperature": 1.0, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"logit_bias": {70: 5.0}},
    {"temperature": 2.0, "allowed_tokens": [70, 71, 72, EOS]},
]


def test_requests_of_all_settings_share_one_program_and_get_what_they_get_alone(lm):
    with lm.engine(slots=8, seconds=None, fill_first=True) as engine:
        requests = [
            engine.submit(PROMPTS[i % 3], 20, seed=i, logprobs=1, **settings)
            for i, settings in enumerate(MIXED)
        ]
        warm = draw_burst._cache_size()
        engine.run()
        assert draw_burst._cache_size() <= warm + 1
    for i, (request, settings) in enumerate(zip(requests, MIXED, strict=True)):
        alone = lm.sample([PROMPTS[i % 3]], 20, seed=[i], **settings)
        assert_same_samples([request.result()], alone)
    assert {*requests[7].result().tokens} <= {70, 71, 72}


@dataclasses.dataclass(frozen=True)
class SecondBest:
    """Takes the second most likely token."""

    def draw(self, logits, key):
        return jax.lax.top_k(logits, 2)[1][1]


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Draws as temperature 1 does."""

    def draw(self, logits, key):
        return jax.random.categorical(key, logits - logits.max())


def test_a_way_of_drawing_of_ones_own_stands_beside_the_others(lm):
    with lm.engine(slots=4, seconds=None, fill_first=True) as engine:
        methods = (SecondBest(), WARM, Softmax(), SecondBest())
        requests = [engine.submit(PROMPTS[1], 12, sampling=m, seed=5) for m in methods]
        second, warm, own, again = (request.result() for request in requests)
    assert_same_samples([second, own], [again, warm])
    logits = plain_logits((*PROMPTS[1], *second.tokens))[len(PROMPTS[1]) - 1 : -1]
    assert second.tokens == np.argsort(-logits)[:, 1].tolist()
    expected = [log_softmax(row)[t] for row, t in zip(logits, second.tokens, strict=True)]
    np.testing.assert_allclose(second.logprobs, expected, atol=1e-4)
    assert_same_samples(lm.sample([PROMPTS[1]], 12, sampling=SecondBest()), [second])


@dataclasses.dataclass(frozen=True)
class Wrong:
    value: object = 0

    def draw(self, logits, key):
        return logits if self.value == "logits" else jax.numpy.int32(self.value)


def test_a_token_outside_the_vocabulary_ends_its_own_request_alone(lm):
    with lm.engine(slots=2, seconds=None, fill_first=True) as engine:
        wrong = engine.submit(PROMPTS[0], 9, sampling=Wrong(261))
        right = engine.submit(PROMPTS[1], 9)
        engine.run()
    assert_same_samples([right.result()], lm.sample([PROMPTS[1]], 9))
    with pytest.raises(ValueError, match=r"token outside the vocabulary; ids are 0 to 260"):
        wrong.result()


def test_slots_are_used_again_and_start_from_nothing(lm):
    prompts = [[*PROMPTS[2][:k], 90 + k] for k in range(9)]
    options = {"sampling": WARM, "max_new_tokens": 10}
    found = samples(lm, prompts, seeds=range(9), slots=2, **options)
    for i, prompt in enumerate(prompts):
        assert_same_samples(lm.sample([prompt], seed=[i], **options), [found[i]])


def test_a_half_empty_pool_does_not_cost_a_full_one(lm):
    with lm.engine(slots=4, seconds=None, fill_first=True) as engine:
        for i, count in enumerate((10, 10, 10, 200)):
            engine.submit(PROMPTS[i % 3], count, stop_ids=())
        engine.run()
    drawn, stats = 10 * 3 + 200, engine.stats
    assert stats.drawn_tokens == drawn
    assert stats.row_steps < 4 * BURST + 200


def test_a_short_prompt_does_not_wait_for_a_long_one_nor_do_rows_that_are_written(lm):
    with lm.engine(slots=3, seconds=None) as engine:
        running = engine.submit(PROMPTS[0], 400, stop_ids=())
        while not running.num_tokens:
            engine.step()
        long = engine.submit([20] * 2000, 5, stop_ids=())
        engine.step()
        short = engine.submit(PROMPTS[1], 5, stop_ids=())
        reads = engine.stats.read_calls
        while not short.ended:
            before = running.num_tokens, engine.stats.read_calls
            engine.step()
            # One call of reading at most between two bursts.
            assert engine.stats.read_calls <= before[1] + 1
            assert running.num_tokens > before[0]
        assert engine.stats.read_calls - reads < 10
        assert not long.ended and long.unread > 1000
        engine.run()
    assert_same_samples([long.result()], lm.sample([[20] * 2000], 5, stop_ids=()))
    assert_same_samples([running.result()], lm.sample([PROMPTS[0]], 400, stop_ids=()))


def test_first_come_first_served_but_for_priorities(lm):
    order = []
    with lm.engine(slots=1, seconds=None) as engine:
        requests = [engine.submit([70 + p], 2, priority=p, stop_ids=()) for p in (0, 0, 2, 1, 2)]
        order += [requests.index(request) for request in engine.as_ended(requests)]
    assert order == [2, 4, 3, 0, 1]


def test_a_request_ends_at_its_deadline_wherever_it_is(lm, monkeypatch):
    with lm.engine(slots=1, seconds=None) as engine:
        running = engine.submit(PROMPTS[0], 400, stop_ids=(), deadline=1e6)
        waiting = engine.submit(PROMPTS[1], 400, stop_ids=(), deadline=1e6)
        while not running.num_tokens:
            engine.step()
        later = pool_module.time.monotonic() + 2e6
        monkeypatch.setattr(pool_module.time, "monotonic", lambda: later)
        engine.run()
    assert (running.finish_reason, waiting.finish_reason) == ("deadline", "deadline")
    assert 0 < running.num_tokens < 400 and not waiting.num_tokens


def test_requests_can_be_cancelled_at_any_moment_and_leave_nothing(lm):
    rng = np.random.default_rng(0)
    options = {"sampling": WARM, "max_new_tokens": 25}
    with lm.engine(slots=4, seconds=None) as engine:
        requests = []
        for i in range(12):
            requests.append(engine.submit([*PROMPTS[2], 80 + i], seed=i, **options))
            for _ in range(rng.integers(3)):
                engine.step()
            if i % 3 == 2:
                requests[i - rng.integers(3)].cancel()
        engine.run()
        assert engine.stats.ended["cancelled"] >= 1
        assert sum(engine.stats.ended.values()) == 12
    for i, request in enumerate(requests):
        sample = request.result()
        (alone,) = lm.sample([[*PROMPTS[2], 80 + i]], seed=[i], **options)
        assert sample.tokens == alone.tokens[: len(sample.tokens)]
        if sample.finish_reason != "cancelled":
            assert_same_samples([sample], [alone])


def test_threads_submit_while_one_drives(lm):
    engine = lm.engine(slots=4)
    driver = threading.Thread(target=engine.drive)
    driver.start()
    found = {}

    def ask(i):
        options = {"temperature": 1.0, "seed": i}
        pieces = list(engine.submit(PROMPTS[i % 3], 20, **options))
        found[i] = "".join(pieces)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    engine.close()
    driver.join(timeout=300)
    assert not driver.is_alive()
    for i, text in found.items():
        (alone,) = lm.sample([PROMPTS[i % 3]], 20, temperature=1.0, seed=[i])
        assert text == alone.text
    assert len(found) == 8


@pytest.mark.parametrize(
    "prompt, options, message",
    [
        ([], {}, "prompt is empty"),
        ("", {}, "prompt is empty"),
        ([5, 261], {}, "prompt holds token 261; ids are 0 to 260"),
        ([-1], {}, "prompt holds token -1"),
        ([5], {"max_new_tokens": -1}, "a whole number of at least 0, got -1"),
        ([5], {"max_new_tokens": 1.5}, "a whole number of at least 0, .*got 1.5|whole number"),
        ([5], {"stop": ["a", ""]}, "stop must hold strings, none of them empty, got ''"),
        ([5], {"stop": [7]}, "stop must hold strings, none of them empty, got 7"),
        ([5], {"stop_ids": range(17)}, "stop_ids holds 17 tokens; 16 are the most"),
        ([5.5], {}, "prompt holds token 5.5"),
        ([5], {"seed": -1}, "seed must be"),
        ([5], {"seed": 2**32}, "seed must be"),
        ([5], {"seed": 0.5}, "seed must be"),
        (
            [5],
            {"logprobs": 21},
            "logprobs must be a whole number of at least 0 and at most 20, got 21",
        ),
        ([5], {"deadline": 0}, "deadline must be a number above 0"),
        ([5], {"logit_bias": {261: 1.0}}, "logit_bias names token 261; ids are 0 to 260"),
        ([5], {"logit_bias": {5: float("nan")}}, r"logit_bias\[5\] must be a number, got nan"),
        ([5], {"allowed_tokens": []}, "allowed_tokens must be a list, not empty"),
        ([5], {"allowed_tokens": [-1]}, "allowed_tokens names token -1"),
        (
            [5],
            {"presence_penalty": float("inf")},
            "presence_penalty must be a number of .*, got inf",
        ),
        ([5], {"sampling": WARM, "top_k": 3}, "give sampling or top_k, not both"),
        ([5], {"sampling": Wrong("logits")}, r"method Wrong must draw one token.*float32\[261\]"),
        ([5], {"sampling": Wrong([])}, "method Wrong has no hash"),
    ],
)
def test_wrong_input_is_named_in_one_line_and_disturbs_nobody(lm, prompt, options, message):
    engine = lm.engine(slots=1)
    with pytest.raises(ValueError, match=message) as caught:
        engine.submit(prompt, **options)
    assert "\n" not in str(caught.value)
    assert engine.stats.submitted == 0


def test_wrong_options_and_engines_are_named(lm):
    with pytest.raises(TypeError, match="there is no option 'topk'; sampling has temperature"):
        lm.sample([[5]], topk=3)
    with pytest.raises(ValueError, match=r"SamplingConfig or an object with a method draw"):
        lm.sample([[5]], sampling=0.7)
    for options, message in (
        ({"slots": 0}, "slots must be a whole number of at least 1, got 0"),
        ({"burst": 0}, "burst must be"),
        ({"waiting": -1}, "waiting must be"),
    ):
        with pytest.raises(ValueError, match=message):
            lm.engine(**options)
    with pytest.raises(ValueError, match="2 seeds for 1 prompts"):
        lm.sample([[5]], seed=[1, 2])


def test_an_engine_that_is_full_or_closed_says_so(lm):
    engine = lm.engine(slots=1, waiting=1)
    first = engine.submit([5], 3)
    with pytest.raises(EngineFull, match="1 requests wait, which is this engine's bound"):
        engine.submit([6], 3)
    assert first.cancel()
    with pytest.raises(ValueError, match="request 0 was cancelled before"):
        first.cancel()
    other = engine.submit([6], 3) if not engine.step() else None
    engine.close()
    with pytest.raises(EngineClosed, match="the engine is closed"):
        engine.submit([5], 3)
    assert first.result().finish_reason == "cancelled"
    assert other.result().finish_reason == "cancelled"
    with pytest.raises(ValueError, match="request 1 was submitted without keep_context"):
        other.context()
