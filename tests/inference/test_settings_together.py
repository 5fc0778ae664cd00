"""Requests of all settings beside each other."""

import dataclasses

import jax
import numpy as np
import pytest

from griffin_jax.inference.decode import draw_burst
from tests.inference.comparisons import (
    PROMPTS,
    WARM,
    Wrong,
    assert_same_samples,
    log_softmax,
)
from tests.inference.tiny_model import EOS, language_model, plain_logits


@pytest.fixture(scope="module")
def lm():
    return language_model()


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


def test_a_token_outside_the_vocabulary_ends_its_own_request_alone(lm):
    with lm.engine(slots=2, seconds=None, fill_first=True) as engine:
        wrong = engine.submit(PROMPTS[0], 9, sampling=Wrong(261))
        right = engine.submit(PROMPTS[1], 9)
        engine.run()
    assert_same_samples([right.result()], lm.sample([PROMPTS[1]], 9))
    with pytest.raises(ValueError, match=r"token outside the vocabulary; ids are 0 to 260"):
        wrong.result()
