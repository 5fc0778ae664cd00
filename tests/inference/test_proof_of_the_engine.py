"""A few hundred of the requests of the kept proof."""

import numpy as np
import pytest

from tests.inference import proof_of_the_engine as proof


@pytest.mark.parametrize(
    "weights, count, settings, speculate",
    [
        ("float32", 60, proof.SETTINGS[:2], None),
        pytest.param("float32", 150, proof.SETTINGS, None, marks=pytest.mark.slow),
        pytest.param("float32", 100, proof.SETTINGS, proof.DRAFTS, marks=pytest.mark.slow),
        pytest.param("nf4", 50, proof.SETTINGS, None, marks=pytest.mark.slow),
    ],
)
def test_requests_get_what_they_get_alone_whoever_comes_and_goes(
    weights, count, settings, speculate
):
    lm = proof.model(weights)
    found, stats, cached = proof.run(lm, count, 1, settings, speculate)
    assert sum(stats.ended.values()) == count
    assert cached.hits > count / 4 and cached.evicted > 0
    differ, largest = proof.differences(lm, found)
    assert not differ
    assert largest <= proof.BOUND
    # No text is read twice, however long it waits between two calls.
    assert stats.read_tokens + stats.cached_tokens <= stats.alone_tokens


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "frequency_penalty": 0.5}])
def test_a_margin_is_the_least_bias_that_changes_a_draw(settings):
    lm, prompt = proof.model("float32"), [7, 9, 11]
    options = {"max_new_tokens": 1, "seed": 3, **settings}
    first = lm.sample([prompt], **options).pop().tokens
    other = first[0] + 1
    missed = proof.margin(lm, prompt, options, first, 0, other)
    for more in (missed - 1e-4, missed + 1e-4):
        biased = lm.sample([prompt], **options, logit_bias={other: more, first[0]: -more}).pop()
        assert (biased.tokens == [other]) == (more > missed)


@pytest.mark.slow
def test_a_token_that_is_just_within_a_filter_is_little_off_to_be_shut_out():
    lm, prompt = proof.model("float32"), [7, 9, 11]
    logits, _ = lm.apply([prompt], last_only=True)
    ranked = np.argsort(-np.asarray(logits[0]))
    for seed in range(100):
        options = {"max_new_tokens": 1, "seed": seed, "temperature": 5.0, "top_k": 3}
        (own,) = lm.sample([prompt], **options).pop().tokens
        if own == ranked[2]:
            break
    (other,) = lm.sample([prompt], **options, logit_bias={own: -50.0}).pop().tokens
    gap = float(logits[0, ranked[2]] - logits[0, ranked[3]])
    assert 0 < proof.margin(lm, prompt, options, [own], 0, other) <= gap + 1e-4
