"""lm-evaluation-harness over HTTP; `lm_eval_client` does the same at length."""

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("aiohttp")
pytest.importorskip("tenacity")

from tests.serving import lm_eval_client


def test_log_likelihoods_and_flags_are_those_of_the_adapter(server, lm):
    requests = lm_eval_client.make_requests(60)[::3]
    gap, flags = lm_eval_client.likelihoods_differ(server.url, "tiny", lm, requests, batch_size=3)
    assert gap <= lm_eval_client.BOUND and flags == 0


def test_answers_of_a_chat_are_those_of_the_adapter(server, lm):
    assert lm_eval_client.answers_differ(server.url, "tiny", lm, 3) == 0
