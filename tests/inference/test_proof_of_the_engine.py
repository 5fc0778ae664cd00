"""A few hundred of the requests of the kept proof."""

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
