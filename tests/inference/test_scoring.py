"""Scores against the plain model."""

import jax
import numpy as np
import pytest

from griffin_jax.inference import score
from tests.inference.tiny_model import CONFIG, language_model, plain_logits


def expected_score(context, continuation):
    tokens = (*context, *continuation)
    logits = plain_logits(tokens)[len(context) - 1 : -1].astype(np.float64)
    log_probability = np.asarray(jax.nn.log_softmax(logits))[
        np.arange(len(continuation)), list(continuation)
    ]
    return log_probability.sum(), bool((logits.argmax(-1) == continuation).all())


def test_scores_are_sums_of_plain_log_softmax_in_the_order_given():
    rng = np.random.default_rng(0)
    lengths = [(1, 1), (40, 3), (3, 90), (31, 1), (32, 1), (33, 40), (90, 2)]
    pairs = [
        tuple(rng.integers(0, CONFIG.vocab_size, n).tolist() for n in pair) for pair in lengths
    ]
    lm = language_model()
    # One continuation that is greedy throughout.
    pairs.append((pairs[1][0], lm.sample([pairs[1][0]], max_new_tokens=4)[0].tokens))
    found = score(lm.model, lm.params, pairs, batch_size=4)
    assert [greedy for _, greedy in found] == [False] * 7 + [True]
    for pair, (log_probability, greedy) in zip(pairs, found, strict=True):
        expected, expected_greedy = expected_score(*pair)
        np.testing.assert_allclose(log_probability, expected, rtol=1e-5, atol=1e-4)
        assert greedy == expected_greedy


def test_no_pairs_have_no_scores():
    lm = language_model()
    assert score(lm.model, lm.params, []) == []


@pytest.mark.parametrize(
    "pair, message",
    [
        (([], [5]), "context 0 is empty"),
        (([5], []), "continuation 0 is empty"),
        (([5], [261]), "continuation 0 holds token 261"),
    ],
)
def test_wrong_input_is_named(pair, message):
    lm = language_model()
    with pytest.raises(ValueError, match=message):
        score(lm.model, lm.params, [pair])
