"""Texts whose every step a grammar allows, beside texts of no grammar."""

import numpy as np
import pytest

from griffin_jax.inference import SamplingConfig, grammar
from tests.inference.tiny_model import CONFIG, EOS, ByteTokenizer, language_model, plain_logits

VOCAB = CONFIG.vocab_size
TOKENIZER = ByteTokenizer()
PROMPT = TOKENIZER.encode("a short one")
WARM = SamplingConfig(temperature=3.0)


class Counting:
    """Lowercase letters, each above the one before by 1 or 2; the end only after `m` or later."""

    def __init__(self, packs=False):
        self.packs = packs
        self.calls = []

    def allowed(self, tokens):
        self.calls.append(list(tokens))
        last = tokens[-1] - 5 if len(tokens) else ord("a") - 1
        mask = np.zeros(VOCAB, bool)
        for letter in (last + 1, last + 2):
            if letter <= ord("z"):
                mask[5 + letter] = True
        mask[EOS] = last >= ord("m")
        return grammar.packed(mask, VOCAB).view(np.int32) if self.packs else mask


@pytest.fixture(scope="module")
def lm():
    return language_model()


def is_counting(text):
    steps = np.diff([ord("a") - 1, *map(ord, text)])
    return set(steps.tolist()) <= {1, 2}


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 261])
def test_masks_are_packed_and_unpacked(vocab_size):
    mask = np.random.default_rng(vocab_size).random(vocab_size) < 0.5
    bits = grammar.packed(mask, vocab_size)
    assert bits.shape == (grammar.words_of(vocab_size),)
    assert np.asarray(grammar.unpacked(bits[None], vocab_size)).tolist() == [mask.tolist()]
    assert [grammar.allows(bits, t) for t in range(vocab_size)] == mask.tolist()
    # Bits beyond the vocabulary are of no token.
    full = np.full(len(bits), -1, np.int32)
    assert (grammar.packed(full, vocab_size) == grammar.everything(vocab_size)).all()
    assert not grammar.allows_more_than(grammar.everything(vocab_size), range(vocab_size + 40))


def test_a_greedy_text_is_the_argmax_of_what_its_grammar_allows(lm):
    sample = lm.sample([PROMPT], 40, grammar=Counting())[0]
    logits = plain_logits((*PROMPT, *sample.tokens))[len(PROMPT) - 1 :]
    given = Counting()
    for i, row in enumerate(logits):
        best = np.where(given.allowed(sample.tokens[:i]), row, -np.inf).argmax()
        assert best == (sample.tokens[i] if i < len(sample.tokens) else EOS)
    shifted = logits - logits.max(-1, keepdims=True)
    own = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    expected = [row[t] for row, t in zip(own, sample.tokens, strict=False)]
    np.testing.assert_allclose(sample.logprobs, expected, atol=1e-4)  # the model's, without a mask


def test_rows_with_a_grammar_keep_to_it_and_leave_the_others_what_they_get_alone(lm):
    options = {"sampling": WARM, "max_new_tokens": 40}
    with lm.engine(slots=4, seconds=None, fill_first=True) as engine:
        held = [
            engine.submit(PROMPT, seed=i, grammar=Counting(packs=i % 2 == 0), **options)
            for i in range(6)
        ]
        free = [engine.submit([*PROMPT, 80 + i], seed=i, **options) for i in range(4)]
        engine.run()
    for seed, request in enumerate(held):
        sample = request.result()
        assert sample.finish_reason == "stop" and is_counting(sample.text)
        assert sample.text[-1] >= "m"
        calls = request.plan.grammar.calls
        assert calls == [sample.tokens[:i] for i in range(len(calls))]
        (alone,) = lm.sample([PROMPT], seed=[seed], grammar=Counting(), **options)
        assert sample.tokens == alone.tokens
    assert len({request.result().text for request in held}) > 1
    for seed, request in enumerate(free):
        (alone,) = lm.sample([[*PROMPT, 80 + seed]], seed=[seed], **options)
        assert request.result().tokens == alone.tokens
        assert not is_counting(alone.text)


class Fixed:
    """One text, after which nothing may follow, or only the end."""

    def __init__(self, tokens, end):
        self.tokens, self.end = tokens, end

    def allowed(self, tokens):
        mask = np.zeros(VOCAB, bool)
        if len(tokens) < len(self.tokens):
            mask[self.tokens[len(tokens)]] = True
        else:
            mask[self.end] = self.end is not None
        return mask


@pytest.mark.parametrize("end", [EOS, None])
def test_a_request_ends_where_its_grammar_is_complete(lm, end):
    with lm.engine(slots=1, seconds=None) as engine:
        request = engine.submit(PROMPT, 40, grammar=Fixed([70, 71, 72], end), keep_context=True)
        engine.run()
        assert engine.stats.steps == 3  # the end is not drawn
        empty = engine.submit(PROMPT, 40, grammar=Fixed([], end))
        kept = engine.submit(PROMPT, 40, grammar=Fixed([], end), keep_context=True)
        engine.run()
        assert engine.stats.steps == 3
    sample = request.result()
    assert (sample.tokens, sample.finish_reason) == ([70, 71, 72], "stop")
    context = request.context()
    assert context.tokens == (*PROMPT, 70, 71, 72) and context.read == len(context.tokens) - 1
    (rest,) = lm.sample([[]], context=context, max_new_tokens=10)
    assert rest.tokens == lm.sample([context.tokens], max_new_tokens=10)[0].tokens
    for nothing in (empty, kept):
        assert (nothing.result().tokens, nothing.finish_reason) == ([], "stop")
    assert kept.context().tokens == tuple(PROMPT)


def test_a_stop_token_that_a_grammar_forbids_is_never_drawn(lm):
    class Anything:
        def allowed(self, tokens):
            return np.arange(VOCAB) > 4

    biased = {"logit_bias": {EOS: 50.0}}
    (free,) = lm.sample([PROMPT], 12, **biased)
    assert (free.tokens, free.finish_reason) == ([], "stop")
    (held,) = lm.sample([PROMPT], 12, grammar=Anything(), **biased)
    assert (len(held.tokens), held.finish_reason) == (12, "length")


def test_no_stop_token_is_drawn_before_so_many_tokens(lm):
    with lm.engine(slots=2, seconds=None, fill_first=True) as engine:
        requests = [
            engine.submit(PROMPT, 20, min_tokens=least, logit_bias={EOS: 50.0})
            for least in (0, 7, 20)
        ]
        engine.run()
    assert [len(request.result().tokens) for request in requests] == [0, 7, 20]
    plain = [t for t in lm.sample([PROMPT], 20, stop_ids=())[0].tokens if t != EOS]
    assert requests[1].result().tokens == plain[:7]


class Failing:
    """Fails at the third token, or gives what is no mask."""

    def __init__(self, mask=None):
        self.mask = mask

    def allowed(self, tokens):
        if self.mask is not None:
            return self.mask
        if len(tokens) == 2:
            raise RuntimeError("the grammar has lost its place")
        return np.ones(VOCAB, bool)


def test_a_grammar_that_fails_ends_its_own_request_alone(lm):
    with lm.engine(slots=2, seconds=None) as engine:
        wrong = engine.submit(PROMPT, 9, grammar=Failing())
        right = engine.submit(PROMPT, 9)
        stuck = engine.submit(PROMPT, 9, grammar=Counting(), allowed_tokens=[70])
        engine.run()
        with pytest.raises(ValueError, match=r"mask must be bool\[261\] or int32\[9\], got int64"):
            engine.submit(PROMPT, 9, grammar=Failing(np.zeros(9, int)))
        with pytest.raises(ValueError, match=r"object with a method allowed\(tokens\), got 'json'"):
            engine.submit(PROMPT, 9, grammar="json")
    assert right.result().tokens == lm.sample([PROMPT], 9)[0].tokens
    with pytest.raises(RuntimeError, match="lost its place"):
        wrong.result()
    assert wrong.num_tokens == 2
    with pytest.raises(ValueError, match="leave no token to draw"):
        stuck.result()
    assert engine.stats.errors == {"RuntimeError": 1, "ValueError": 1}
