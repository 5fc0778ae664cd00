"""Drafts change how fast a text comes, and nothing else."""

import functools

import jax
import numpy as np
import pytest

from griffin_jax.inference import SamplingConfig, Speculation
from griffin_jax.inference.drafting import Lookup
from griffin_jax.inference.speculation import Speculator
from tests.inference.tiny_model import (
    CONFIG,
    EOS,
    WINDOW,
    ByteTokenizer,
    language_model,
    plain_logits,
)

TOKENIZER = ByteTokenizer()
PROMPTS = [TOKENIZER.encode(text) for text in ("x", "a short one", "again and again " * 5)]
WARM = SamplingConfig(temperature=1.0)
LOOKUP = Speculation(tokens=3, least=1, always=True)


@pytest.fixture(scope="module")
def lm():
    return language_model()


@functools.cache
def smaller():
    """A smaller model of the same vocabulary that often says the same: its first layer alone."""
    lm = language_model()
    config = CONFIG.replace(num_layers=1)
    params = {name: tree for name, tree in lm.params.items() if name != "blocks_1"}
    return type(lm)(config, params, lm.tokenizer)


def with_model(**options):
    return Speculation(tokens=3, draft=smaller(), always=True, **options)


def run(lm, speculate, prompts, slots=4, **options):
    """Requests that have ended, and what the engine did."""
    with lm.engine(slots=slots, seconds=None, speculate=speculate, fill_first=True) as engine:
        requests = [
            engine.submit(prompt, seed=i, keep_context=True, **options)
            for i, prompt in enumerate(prompts)
        ]
        engine.run()
    return requests, engine.stats


def assert_equal(requests, others):
    for one, other in zip(requests, others, strict=True):
        assert one.result().tokens == other.result().tokens
        assert (one.result().text, one.finish_reason) == (other.result().text, other.finish_reason)
        np.testing.assert_allclose(one.result().logprobs, other.result().logprobs, atol=1e-4)


GREEDY, FILTERED = SamplingConfig(), SamplingConfig(temperature=0.7, top_k=4)


@pytest.mark.parametrize(
    "draft, sampling",
    [
        ("lookup", GREEDY),
        pytest.param("model", FILTERED, marks=pytest.mark.slow),
        pytest.param("lookup", FILTERED, marks=pytest.mark.slow),
        pytest.param("model", GREEDY, marks=pytest.mark.slow),
    ],
)
def test_a_text_is_what_it_is_without_drafts(lm, draft, sampling):
    speculate = LOOKUP if draft == "lookup" else with_model()
    options = {"sampling": sampling, "max_new_tokens": 6 * WINDOW, "stop_ids": ()}
    drafted, stats = run(lm, speculate, PROMPTS, **options)
    plain, _ = run(lm, None, PROMPTS, **options)
    assert_equal(drafted, plain)
    assert 0 < stats.accepted_tokens <= stats.drafted_tokens
    assert stats.draft_calls + stats.accepted_tokens == stats.drawn_tokens
    assert stats.draft_calls < stats.drawn_tokens
    for request in drafted:  # and it leaves behind what it would have
        context = request.context()
        probe = [*context.tokens[context.read :], 70]
        logits, _ = lm.apply([probe], context.state)
        expected = plain_logits((*context.tokens[: context.read], *probe))[-len(probe) :]
        np.testing.assert_allclose(logits[0], expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["lookup", "model"])
def test_texts_of_all_settings_and_ends_are_what_they_are_without_drafts(lm, draft):
    speculate = LOOKUP if draft == "lookup" else with_model()
    settings = [
        {"temperature": 1.0, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"repetition_penalty": 1.3},
        {"temperature": 2.0, "allowed_tokens": [70, 71, EOS], "min_tokens": 9},
        {"temperature": 3.0, "logit_bias": {EOS: 2.0}},
        {"temperature": 1.0, "top_p": 0.8, "stop": ["a", "e"], "logprobs": 2},
        {"max_new_tokens": 1},
        {"temperature": 1.0, "max_new_tokens": 5, "logprobs": 1},
    ]

    def samples(speculate):
        with lm.engine(slots=2, seconds=None, speculate=speculate, fill_first=True) as engine:
            requests = [
                engine.submit(PROMPTS[i % 3], seed=i, **{"max_new_tokens": 30} | given)
                for i, given in enumerate(settings)
            ]
            engine.run()
            assert (engine.stats.accepted_tokens > 0) == (speculate is not None)
        return requests

    drafted, plain = samples(speculate), samples(None)
    assert_equal(drafted, plain)
    for one, other in zip(drafted, plain, strict=True):
        tops = [[t for t, _ in top] for top in one.result().top_logprobs or []]
        assert tops == [[t for t, _ in top] for top in other.result().top_logprobs or []]


def test_what_is_drawn_with_drafts_is_distributed_as_the_model_says(lm):
    """Many texts of three tokens are as frequent as the model's own probabilities say."""
    count, allowed = 600, [70, 71, 72]
    heat = 8.0  # under which all three are likely
    sampling = {"temperature": heat, "allowed_tokens": allowed}
    prompt = [70, 71, 70, 71, 70]
    with lm.engine(slots=64, seconds=None, fill_first=True, speculate=LOOKUP) as engine:
        requests = [engine.submit(prompt, 3, seed=i, stop_ids=(), **sampling) for i in range(count)]
        engine.run()
        assert engine.stats.accepted_tokens > count / 10
    texts = [tuple(request.result().tokens) for request in requests]
    expected = {(): 1.0}
    for _ in range(3):
        grown = {}
        for text, probability in expected.items():
            logits = plain_logits((*prompt, *text))[-1][allowed].astype(np.float64)
            share = np.exp((logits - logits.max()) / heat)
            for token, p in zip(allowed, share / share.sum(), strict=True):
                grown[*text, token] = probability * p
        expected = grown
    # Pearson's statistic over the texts that are not too rare, the others together.
    common = [text for text, p in expected.items() if p * count >= 5]
    rest = 1 - sum(expected[text] for text in common)
    seen = [texts.count(text) for text in common]
    chi = sum(
        (n - count * expected[t]) ** 2 / (count * expected[t])
        for t, n in zip(common, seen, strict=True)
    )
    if rest * count >= 1:
        chi += (count - sum(seen) - rest * count) ** 2 / (rest * count)
    assert len(common) > 3
    degrees = len(common)
    assert chi < degrees + 4 * np.sqrt(2 * degrees)  # 4 standard deviations


def test_lookup_goes_on_as_the_text_did_before(lm):
    lookup = Lookup(least=2, most=3, room=16)
    text = [1, 2, 3, 9, 8, 2, 3, 7, 2, 3]
    memory = jax.tree.map(lambda x: np.asarray(x)[None], lookup.entry(None, text))
    drafts, lengths = jax.jit(lookup.propose, static_argnums=4)(None, memory, None, None, 5)
    # "2 3" stood there twice; the last time 7 followed, and what lies between repeats.
    assert (drafts.tolist(), lengths.tolist()) == ([[7, 2, 3, 7, 2]], [5])
    memory = jax.tree.map(lambda x: np.asarray(x)[None], lookup.entry(None, [*text, 4]))
    assert jax.jit(lookup.propose, static_argnums=4)(None, memory, None, None, 5)[1].tolist() == [0]


@pytest.mark.parametrize("room", [16, 64])
def test_lookup_agrees_with_its_definition_also_where_the_text_is_longer_than_it_knows(room):
    rng = np.random.default_rng(0)
    lookup = Lookup(least=1, most=3, room=room)
    propose = jax.jit(lookup.propose, static_argnums=4)
    advance = jax.jit(lookup.advance)
    text = rng.integers(0, 3, 9).tolist()
    memory = jax.tree.map(lambda x: np.asarray(x)[None], lookup.entry(None, text))
    for _ in range(40):
        known = text[-room:]
        best = None
        for place in range(len(known) - 1):  # of a token before the last one
            agreed = 0
            while (
                agreed < 3 and place - agreed >= 0 and known[place - agreed] == known[-1 - agreed]
            ):
                agreed += 1
            if agreed >= 1 and (best is None or agreed >= best[0]):
                best = agreed, place
        drafts, lengths = propose(None, memory, None, None, 4)
        assert lengths.tolist() == [4 if best else 0]
        if best:
            after = known[best[1] + 1 :]
            assert drafts[0].tolist() == [after[i % len(after)] for i in range(4)]
        drawn = rng.integers(0, 3, 4)
        kept = int(rng.integers(0, 5))
        memory = advance(None, memory, drawn[None], drawn[None], np.array([kept]))
        text += drawn[:kept].tolist()


def test_the_host_knows_what_drafts_would_have_spared():
    lookup = Lookup(least=2, most=4, room=1024)
    history = lookup.history([1, 2, 3, 4, 5, 6, 7, 8], 3)
    history.add(range(100, 160))
    assert history.tokens_per_call == pytest.approx(1)
    history.add([*range(100, 160)] * 2)
    assert history.tokens_per_call > 3  # of 4 at most
    history.add(range(200, 260))
    assert history.tokens_per_call == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_drafts_are_made_only_while_they_pay(lm):
    speculate = Speculation(tokens=3)
    again = TOKENIZER.encode("0123456789")
    with lm.engine(slots=1, seconds=None, speculate=speculate) as engine:
        pool = engine._scheduler.pool
        pool._learn = lambda *args: None  # no clock
        pool._speculator.cost = 1.5
        options = {"allowed_tokens": again, "stop_ids": ()}
        varied = engine.submit(PROMPTS[1], 64, temperature=100.0, **options)
        engine.run()
        assert engine.stats.draft_calls == 0
        repeated = engine.submit(PROMPTS[1], 64, logit_bias={again[0]: 100.0}, stop_ids=())
        engine.run()
        assert engine.stats.accepted_tokens > 16
        pool._speculator.cost = 50.0
        calls = engine.stats.draft_calls
        engine.submit(PROMPTS[1], 64, logit_bias={again[0]: 100.0}, stop_ids=())
        engine.run()
        assert engine.stats.draft_calls == calls
    assert varied.num_tokens == repeated.num_tokens == 64


def test_a_small_model_that_does_not_pay_rests_for_ever_longer():
    speculator = Speculator(with_model(), None, None)
    speculator._always = False
    assert speculator.wants([])
    speculator.learn(drawn=10, calls=10)
    assert not speculator.wants([])
    for rest in (256, 512, 1024):
        speculator.rest(rest - 1)
        assert not speculator.wants([])
        speculator.rest(1)
        assert speculator.wants([])
        speculator.learn(drawn=10, calls=10)
        assert not speculator.wants([])


@pytest.mark.parametrize("draft", ["lookup", pytest.param("model", marks=pytest.mark.slow)])
def test_a_burst_without_drafts_leaves_nothing_stale(lm, draft, monkeypatch):
    """Drafts that begin again know what was drawn meanwhile, and rows that came and went."""
    speculate = LOOKUP if draft == "lookup" else with_model()
    wishes = iter([True, False, True, True, False, False, True] * 40)
    monkeypatch.setattr(Speculator, "wants", lambda *args: next(wishes))
    options = {"sampling": WARM, "max_new_tokens": 40}
    prompts = [[*PROMPTS[i % 3], 80 + i] for i in range(7)]
    drafted, stats = run(lm, speculate, prompts, slots=3, **options)
    assert stats.draft_calls + stats.accepted_tokens < stats.drawn_tokens
    monkeypatch.undo()
    assert_equal(drafted, run(lm, None, prompts, slots=3, **options)[0])


class LettersThenEnd:
    """Allows letters, and from the fourth token on nothing but letters and the end."""

    def allowed(self, tokens):
        mask = np.zeros(CONFIG.vocab_size, bool)
        mask[5 + ord("a") : 5 + ord("z") + 1] = True
        mask[EOS] = len(tokens) >= 4
        return mask


@pytest.mark.slow
def test_an_end_that_a_grammar_allows_is_never_taken_back_among_drafts(lm):
    def requests(speculate):
        with lm.engine(slots=2, seconds=None, fill_first=True, speculate=speculate) as engine:
            given = [
                engine.submit(
                    PROMPTS[i % 3],
                    30,
                    seed=i,
                    temperature=4.0,
                    grammar=LettersThenEnd() if i % 2 else None,
                    stop_ids=[EOS],
                )
                for i in range(6)
            ]
            engine.run()
        return given

    drafted, plain = requests(LOOKUP), requests(None)
    assert_equal(drafted, plain)
    held = [request.result() for request in drafted[1::2]]
    assert all(sample.text.isalpha() and sample.text.islower() for sample in held)
    assert all(len(sample.tokens) >= 4 and EOS not in sample.tokens for sample in held)


@pytest.mark.slow
def test_under_an_unbounded_window_drafts_have_the_room_they_need():
    lm = language_model(
        CONFIG.replace(attention_window=None, block_pattern=("attention",), num_layers=1)
    )
    prompts = [[20] * 118 + [30, 40], [30, 40] * 40]
    options = {"max_new_tokens": 40, "stop_ids": ()}
    drafted, stats = run(lm, LOOKUP, prompts, **options)
    assert stats.accepted_tokens > 0
    assert_equal(drafted, run(lm, None, prompts, **options)[0])


@pytest.mark.parametrize(
    "speculate, message",
    [
        (7, "speculate must be True, False or a Speculation, got 7"),
        (lambda: Speculation(tokens=0), "tokens must be a whole number of at least 1"),
        (lambda: Speculation(least=5), "least must be at most most=4, got 5"),
        (lambda: Speculation(draft="small"), "draft must be a LanguageModel, got 'small'"),
    ],
)
def test_wrong_settings_are_named(lm, speculate, message):
    with pytest.raises(ValueError, match=message) as caught:
        lm.engine(speculate=speculate() if callable(speculate) else speculate)
    assert "\n" not in str(caught.value)


def test_a_draft_model_must_share_the_vocabulary(lm):
    other = language_model(CONFIG.replace(vocab_size=300))
    with pytest.raises(ValueError, match="has 300 tokens and the model 261; they must share one"):
        lm.engine(speculate=Speculation(draft=other))
