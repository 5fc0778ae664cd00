"""Whoever takes an engine's turns may be interrupted, and is never one that the turn itself asks."""

import threading

import numpy as np
import pytest

from griffin_jax.inference.pool import Pool
from tests.inference.comparisons import PROMPTS
from tests.inference.tiny_model import CONFIG, language_model


@pytest.fixture(scope="module")
def lm():
    return language_model()


def interrupted(monkeypatch, name, call):
    """Has a method of the pool interrupted in a call, as by Ctrl-C."""
    method, calls = getattr(Pool, name), []

    def once(*args):
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt
        return method(*args)

    monkeypatch.setattr(Pool, name, once)


@pytest.mark.parametrize("call", [1, 3])
def test_an_interrupt_while_the_device_is_waited_for_loses_nothing(lm, monkeypatch, call):
    alone = lm.sample(PROMPTS[:2], 20, stop_ids=())
    with lm.engine(slots=2, seconds=None, burst=4) as engine:
        requests = [engine.submit(prompt, 20, stop_ids=()) for prompt in PROMPTS[:2]]
        interrupted(monkeypatch, "fetch", call)
        with pytest.raises(KeyboardInterrupt):
            engine.run()
        assert not requests[0].ended
        engine.run()
        assert [request.result().tokens for request in requests] == [s.tokens for s in alone]


def test_an_interrupt_at_another_place_ends_what_was_written_and_not_the_engine(lm, monkeypatch):
    with lm.engine(slots=2, seconds=None, burst=4) as engine:
        request = engine.submit(PROMPTS[0], 20, stop_ids=())
        interrupted(monkeypatch, "draw", 2)
        with pytest.raises(KeyboardInterrupt):
            request.result()
        with pytest.raises(RuntimeError, match="an interrupt has ended what was written"):
            request.result()
        again = engine.submit(PROMPTS[0], 20, stop_ids=()).result()
    assert again.tokens == lm.sample([PROMPTS[0]], 20, stop_ids=())[0].tokens


class Asking:
    """A grammar that asks an engine what may follow."""

    def __init__(self, engine):
        self.engine = engine

    def allowed(self, tokens):
        if tokens:
            self.engine.submit(PROMPTS[1], 2).result()
        return np.ones(CONFIG.vocab_size, bool)


@pytest.mark.parametrize("driven", [False, True])
def test_a_grammar_that_waits_for_its_own_engine_fails_alone(lm, driven):
    (alone,) = lm.sample([PROMPTS[2]], 9, stop_ids=())
    with lm.engine(slots=3, seconds=None) as engine, lm.engine(slots=1) as another:
        if driven:
            driver = threading.Thread(target=engine.drive)
            driver.start()
        asking = engine.submit(PROMPTS[0], 5, grammar=Asking(engine), stop_ids=())
        beside = engine.submit(PROMPTS[2], 9, stop_ids=())
        allowed = engine.submit(PROMPTS[0], 3, grammar=Asking(another), stop_ids=())
        with pytest.raises(RuntimeError, match="a grammar cannot wait for the engine that asks it"):
            asking.result()
        assert beside.result().tokens == alone.tokens
        assert len(allowed.result().tokens) == 3
    if driven:
        driver.join(timeout=60)
        assert not driver.is_alive()
