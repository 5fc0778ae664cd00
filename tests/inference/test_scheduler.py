"""Who is read and drawn when, how requests end, and what an engine refuses."""

import threading

import jax
import numpy as np
import pytest

from griffin_jax.inference import EngineClosed, EngineFull
from griffin_jax.inference import pool as pool_module
from griffin_jax.inference.engine import BURST
from tests.inference.comparisons import (
    PROMPTS,
    WARM,
    assert_reads_on_like_its_text,
    assert_same_samples,
    samples,
)
from tests.inference.tiny_model import language_model


@pytest.fixture(scope="module")
def lm():
    return language_model()


def test_slots_are_used_again_and_start_from_nothing(lm):
    prompts = [[*PROMPTS[2][:k], 90 + k] for k in range(9)]
    options = {"sampling": WARM, "max_new_tokens": 10}
    found = samples(lm, prompts, seeds=range(9), slots=2, **options)
    for i, prompt in enumerate(prompts):
        assert_same_samples(lm.sample([prompt], seed=[i], **options), [found[i]])


def test_a_half_empty_pool_does_not_cost_a_full_one(lm):
    with lm.engine(slots=4, seconds=None, fill_first=True) as engine:
        for i, count in enumerate((10, 10, 10, 200)):
            engine.submit(PROMPTS[i % 3], count, stop_ids=())
        engine.run()
    drawn, stats = 10 * 3 + 200, engine.stats
    assert stats.drawn_tokens == drawn
    assert stats.row_steps < 4 * BURST + 200


def test_offline_prompts_are_read_ahead_and_the_longest_texts_begin_first(lm):
    counts = (8, 8, 8, 8, 8, 40, 40)
    with lm.engine(slots=4, seconds=None, burst=4, fill_first=True) as engine:
        requests = [
            engine.submit(PROMPTS[i % 3], count, stop_ids=()) for i, count in enumerate(counts)
        ]
        while not engine.stats.drawn_tokens:
            engine.step()
        assert [i for i, r in enumerate(requests) if r.num_tokens] == [0, 1, 5, 6]
        # Half as many as there are slots, in the order of their coming.
        assert [i for i, r in enumerate(requests) if not r.unread] == [0, 1, 2, 3, 5, 6]
        assert engine.load().waiting == 1
        engine.run()
    alone = lm.sample(PROMPTS, 40, stop_ids=())
    for i, request in enumerate(requests):
        assert request.result().tokens == alone[i % 3].tokens[: counts[i]]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="an accelerator reads more at once")
def test_offline_prompts_share_their_short_calls_where_that_costs_a_cpu_less(lm):
    prompts = [[*PROMPTS[1], 80 + i] for i in range(5)]  # a call of eight tokens, and four more
    with lm.engine(slots=5, seconds=None, fill_first=True) as engine:
        requests = [engine.submit(prompt, 6, stop_ids=()) for prompt in prompts]
        engine.run()
        stats = engine.stats
    calls = -(-(len(prompts[0]) - 1) // 8)
    # Four together and one alone: in a call of more rows, most would be empty.
    assert stats.read_calls == 2 * calls
    assert stats.padded_tokens == 5 * 8 * calls
    for prompt, request in zip(prompts, requests, strict=True):
        assert_same_samples([request.result()], lm.sample([prompt], 6, stop_ids=()))


def test_a_short_prompt_does_not_wait_for_a_long_one_nor_do_rows_that_are_written(lm):
    with lm.engine(slots=3, seconds=None) as engine:
        running = engine.submit(PROMPTS[0], 400, stop_ids=())
        while not running.num_tokens:
            engine.step()
        long = engine.submit([20] * 2000, 5, stop_ids=())
        engine.step()
        short = engine.submit(PROMPTS[1], 5, stop_ids=())
        reads = engine.stats.read_calls
        while not short.ended:
            before = running.num_tokens, engine.stats.read_calls
            engine.step()
            # One call of reading at most between two bursts.
            assert engine.stats.read_calls <= before[1] + 1
            assert running.num_tokens > before[0]
        assert engine.stats.read_calls - reads < 10
        assert not long.ended and long.unread > 1000
        engine.run()
        # Each token was read once, however often the long one had to wait.
        assert engine.stats.read_tokens == engine.stats.alone_tokens
    assert_same_samples([long.result()], lm.sample([[20] * 2000], 5, stop_ids=()))
    assert_same_samples([running.result()], lm.sample([PROMPTS[0]], 400, stop_ids=()))


def test_first_come_first_served_but_for_priorities(lm):
    order = []
    with lm.engine(slots=1, seconds=None) as engine:
        requests = [engine.submit([70 + p], 2, priority=p, stop_ids=()) for p in (0, 0, 2, 1, 2)]
        order += [requests.index(request) for request in engine.as_ended(requests)]
    assert order == [2, 4, 3, 0, 1]


def test_a_request_ends_at_its_deadline_wherever_it_is(lm, monkeypatch):
    with lm.engine(slots=1, seconds=None) as engine:
        running = engine.submit(PROMPTS[0], 400, stop_ids=(), deadline=1e6)
        waiting = engine.submit(PROMPTS[1], 400, stop_ids=(), deadline=1e6)
        while not running.num_tokens:
            engine.step()
        later = pool_module.time.monotonic() + 2e6
        monkeypatch.setattr(pool_module.time, "monotonic", lambda: later)
        engine.run()
    assert (running.finish_reason, waiting.finish_reason) == ("deadline", "deadline")
    assert 0 < running.num_tokens < 400 and not waiting.num_tokens


def test_requests_can_be_cancelled_at_any_moment_and_leave_nothing(lm):
    rng = np.random.default_rng(0)
    options = {"sampling": WARM, "max_new_tokens": 25}
    with lm.engine(slots=4, seconds=None) as engine:
        requests = []
        for i in range(12):
            requests.append(engine.submit([*PROMPTS[2], 80 + i], seed=i, **options))
            for _ in range(rng.integers(3)):
                engine.step()
            if i % 3 == 2:
                requests[i - rng.integers(3)].cancel()
        engine.run()
        assert engine.stats.ended["cancelled"] >= 1
        assert sum(engine.stats.ended.values()) == 12
    for i, request in enumerate(requests):
        sample = request.result()
        (alone,) = lm.sample([[*PROMPTS[2], 80 + i]], seed=[i], **options)
        assert sample.tokens == alone.tokens[: len(sample.tokens)]
        if sample.finish_reason != "cancelled":
            assert_same_samples([sample], [alone])


def test_threads_submit_while_one_drives(lm):
    engine = lm.engine(slots=4)
    driver = threading.Thread(target=engine.drive)
    driver.start()
    found = {}

    def ask(i):
        options = {"temperature": 1.0, "seed": i}
        pieces = list(engine.submit(PROMPTS[i % 3], 20, **options))
        found[i] = "".join(pieces)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    engine.close()
    driver.join(timeout=300)
    assert not driver.is_alive()
    for i, text in found.items():
        (alone,) = lm.sample([PROMPTS[i % 3]], 20, temperature=1.0, seed=[i])
        assert text == alone.text
    assert len(found) == 8


def test_an_engine_that_is_full_or_closed_says_so(lm):
    engine = lm.engine(slots=1, waiting=1)
    first = engine.submit([5], 3)
    with pytest.raises(EngineFull, match="1 requests wait, which is this engine's bound"):
        engine.submit([6], 3)
    assert first.cancel()
    with pytest.raises(ValueError, match="request 0 was cancelled before"):
        first.cancel()
    other = engine.submit([6], 3) if not engine.step() else None
    engine.close()
    with pytest.raises(EngineClosed, match="the engine is closed"):
        engine.submit([5], 3)
    assert first.result().finish_reason == "cancelled"
    assert other.result().finish_reason == "cancelled"
    with pytest.raises(ValueError, match="request 1 was submitted without keep_context"):
        other.context()


def test_a_request_that_is_cancelled_while_it_waits_leaves_what_its_context_had_read(lm):
    before = lm.read(PROMPTS[2])
    with lm.engine(slots=1) as engine:
        request = engine.submit(PROMPTS[1], 3, context=before, keep_context=True)
        request.cancel()
        engine.run()
        context = request.context()
    assert context.tokens == (*before.tokens, *PROMPTS[1])
    assert_reads_on_like_its_text(context)


def test_a_request_that_has_not_been_read_leaves_no_context_and_says_so(lm):
    with lm.engine(slots=1) as engine:
        request = engine.submit(PROMPTS[0], 3, keep_context=True)
        request.cancel()
        engine.run()
        with pytest.raises(ValueError, match="request 0 ended before its prompt had been read"):
            request.context()
