"""Scores of many texts that have beginnings in common, against each alone."""

import numpy as np
import pytest

from griffin_jax.inference import score
from griffin_jax.inference.forking import Work
from tests.inference.test_scoring import expected_score
from tests.inference.tiny_model import CONFIG, WINDOW, language_model

UNBOUNDED = CONFIG.replace(attention_window=None)


@pytest.fixture(scope="module")
def pairs():
    """Two subjects, three questions each; four letters or three longer choices."""
    rng = np.random.default_rng(0)

    def draw(count):
        return rng.integers(5, CONFIG.vocab_size, count).tolist()

    found = []
    for shots in (draw(9 * WINDOW), draw(40)):
        for length in (12, 30):
            question = shots + draw(length)
            found += [(question, [letter]) for letter in (70, 71, 72, 73)]
        question = shots + draw(20)
        found += [(question, draw(n)) for n in (1, 2, 11)]
        found += [found[-1], (question + found[-1][1], [70])]
    return found


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CONFIG, id="window"),
        pytest.param(UNBOUNDED, id="unbounded", marks=pytest.mark.slow),
    ],
)
def test_forked_scores_are_those_of_each_pair_alone(pairs, config):
    lm = language_model(config)
    forked = score(lm.model, lm.params, pairs, 4)
    alone = score(lm.model, lm.params, pairs, 4, fork=False)
    np.testing.assert_allclose([p for p, _ in forked], [p for p, _ in alone], atol=2e-5)
    assert [greedy for _, greedy in forked] == [greedy for _, greedy in alone]


def test_forked_scores_are_those_of_the_plain_model(pairs):
    lm = language_model()
    found = score(lm.model, lm.params, pairs, 4)
    for pair, (log_probability, greedy) in zip(pairs, found, strict=True):
        expected, expected_greedy = expected_score(*pair)
        np.testing.assert_allclose(log_probability, expected, atol=1e-4)
        assert greedy == expected_greedy


def test_neither_batch_size_nor_order_changes_scores(pairs):
    lm = language_model()
    expected = score(lm.model, lm.params, pairs, batch_size=1)
    order = np.random.default_rng(1).permutation(len(pairs))
    for batch_size in (4, 32):
        found = [None] * len(pairs)
        shuffled = score(lm.model, lm.params, [pairs[i] for i in order], batch_size)
        for i, one in zip(order, shuffled, strict=True):
            found[i] = one
        np.testing.assert_allclose([p for p, _ in found], [p for p, _ in expected], atol=1e-5)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_what_is_shared_is_read_once(pairs):
    lm = language_model()
    forked, alone = Work(), Work()
    score(lm.model, lm.params, pairs, 4, work=forked)
    score(lm.model, lm.params, pairs, 4, fork=False, work=alone)
    inputs = {tuple([*context, *continuation][:-1]) for context, continuation in pairs}
    beginnings = {text[:n] for text in inputs for n in range(1, len(text) + 1)}
    # All that forks of 64 tokens and more can save; two short beginnings are repeated.
    assert len(beginnings) <= forked.tokens <= len(beginnings) + 2 * 64
    assert alone.tokens == alone.alone == forked.alone
    assert forked.tokens < alone.tokens / 5
    assert forked.padded >= forked.tokens


def test_scores_are_told_as_they_are_known(pairs):
    lm, told = language_model(), {}
    found = score(lm.model, lm.params, pairs, 4, on_score=told.__setitem__)
    assert [told[i] for i in range(len(pairs))] == found
