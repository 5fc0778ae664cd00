"""What the device raises ends the requests that it hits, and no others."""

import jax
import pytest

from griffin_jax.inference import reader as reader_module
from griffin_jax.inference.pool import Pool
from tests.inference.tiny_model import ByteTokenizer, language_model

PROMPTS = [ByteTokenizer().encode(text) for text in ("x", "a short one", "another that is long")]
ERROR = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"


@pytest.fixture(scope="module")
def lm():
    return language_model()


def failing(monkeypatch, owner, name, calls):
    """Has the calls of these numbers fail."""
    plain, count = getattr(owner, name), iter(range(1000))

    def call(*args, **options):
        if next(count) in calls:
            raise jax.errors.JaxRuntimeError(ERROR)
        return plain(*args, **options)

    monkeypatch.setattr(owner, name, call)


def outcomes(lm, requests, tokens=9):
    """Whether each has failed; those that have not must have what they get alone."""
    failed = []
    for prompt, request in zip(PROMPTS, requests, strict=True):
        failed.append(request.error is not None)
        if failed[-1]:
            assert request.finish_reason == "error"
            with pytest.raises(jax.errors.JaxRuntimeError, match="allocating 9 bytes"):
                request.result()
        else:
            assert (
                request.result().tokens
                == lm.sample([prompt], tokens, stop_ids=request.plan.stop_ids)[0].tokens
            )
    return failed


@pytest.mark.parametrize("method", ["draw", "fetch"])
def test_an_error_of_the_rows_ends_those_that_have_one(lm, monkeypatch, method):
    with lm.engine(slots=2, seconds=None, fill_first=True) as engine:
        requests = [engine.submit(prompt, 40, stop_ids=()) for prompt in PROMPTS]
        with monkeypatch.context() as patch:
            failing(patch, Pool, method, {0})
            engine.run()
        assert [request.error is None for request in requests] == [False, False, True]
        failed = outcomes(lm, requests, 40)
        assert isinstance(engine.last_error, jax.errors.JaxRuntimeError)
        assert engine.stats.errors == {"JaxRuntimeError": failed.count(True)}
        assert sum(engine.stats.ended.values()) == 3
        assert engine.load().writing == engine.load().waiting == 0
        again = engine.submit(PROMPTS[1], 9)
        assert again.result().tokens == lm.sample([PROMPTS[1]], 9)[0].tokens


def test_an_error_while_reading_ends_the_one_that_is_read(lm, monkeypatch):
    with lm.engine(slots=3, seconds=None) as engine:
        requests = [engine.submit(prompt, 9) for prompt in PROMPTS]
        with monkeypatch.context() as patch:
            failing(patch, reader_module, "read_rows", {0})
            engine.run()
    assert outcomes(lm, requests).count(True) == 1


def test_an_error_of_entering_ends_the_one_that_enters(lm, monkeypatch):
    with lm.engine(slots=3, seconds=None, fill_first=True) as engine:
        requests = [engine.submit(prompt, 9) for prompt in PROMPTS]
        with monkeypatch.context() as patch:
            failing(patch, Pool, "admit", {1})
            engine.run()
    assert outcomes(lm, requests).count(True) == 1


def test_an_error_that_stays_ends_every_request_and_not_the_engine(lm, monkeypatch):
    with lm.engine(slots=2, seconds=None) as engine:
        requests = [engine.submit(prompt, 9) for prompt in PROMPTS]
        with monkeypatch.context() as patch:
            failing(patch, Pool, "draw", range(1000))
            engine.run()
    assert outcomes(lm, requests) == [True] * 3
