"""How many steps a dispatch takes, what is under way meanwhile, and how few programs there are."""

import jax
import pytest

from griffin_jax.inference import pool as pool_module
from griffin_jax.inference.decode import draw_burst
from griffin_jax.inference.engine import BURST
from griffin_jax.inference.pool import Pool
from griffin_jax.sharding import mesh_function
from tests.inference.comparisons import (
    PROMPTS,
    WARM,
    assert_same_samples,
)
from tests.inference.tiny_model import language_model


@pytest.fixture(scope="module")
def lm():
    return language_model()


@pytest.fixture
def log(monkeypatch):
    """A letter for each burst that was dispatched and each that came in."""
    letters = []

    def follow(name, letter):
        method = getattr(Pool, name)

        def logged(self, *args):
            result = method(self, *args)
            if result is not None:
                letters.append(letter)
            return result

        monkeypatch.setattr(Pool, name, logged)

    follow("draw", "d")
    follow("fetch", "r")
    return letters


def test_the_device_is_a_burst_ahead_also_where_a_stop_string_may_end_the_text(lm, log):
    options = {"sampling": WARM, "max_new_tokens": 3 * BURST, "seed": 4}
    (plain,) = lm.sample([PROMPTS[0]], **options)
    assert "".join(log) == "ddrdrr"
    log.clear()
    (stopped,) = lm.sample([PROMPTS[0]], stop="\0never", **options)
    assert "".join(log) == "ddrdrr"
    assert_same_samples([plain], [stopped])


@pytest.fixture
def steps(monkeypatch):
    """The steps of each burst that was dispatched."""
    lengths = []
    draw = Pool.draw

    def drawn(self, *args):
        burst = draw(self, *args)
        if burst is not None:
            lengths.append(burst.steps)
        return burst

    monkeypatch.setattr(Pool, "draw", drawn)
    return lengths


def test_bursts_are_long_where_nobody_waits_for_their_end(lm, steps):
    with lm.engine(slots=2, seconds=None, burst=8) as engine:
        first = [engine.submit(PROMPTS[0], count, stop_ids=()) for count in (40, 40)]
        while not first[0].num_tokens:
            engine.step()
        assert steps == [4, 8]  # the second one was being read
        steps.clear()
        engine.submit(PROMPTS[1], 4, stop_ids=())  # which waits for a row
        engine.step()
        assert steps == [4]
        engine.run()
    steps.clear()
    with lm.engine(slots=4, seconds=None, burst=8, fill_first=True) as engine:
        for count in (3, 3, 3, 40):
            engine.submit(PROMPTS[0], count, stop_ids=())
        engine.run()
    # One of four rows goes on after the first few steps, in a pool of its own.
    assert steps[:2] == [4, 8]


@pytest.mark.parametrize("milliseconds, longest", [(1, 16), (20, 5), (500, 1)])
def test_a_streamed_burst_takes_about_a_tenth_of_a_second(
    lm, monkeypatch, steps, milliseconds, longest
):
    (expected,) = lm.sample([PROMPTS[0]], max_new_tokens=60)
    steps.clear()
    clock = [0.0]
    fetch = jax.device_get

    def fetched(arrays):
        clock[0] += steps[len(times)] * milliseconds / 1000
        times.append(clock[0])
        return fetch(arrays)

    times = []
    monkeypatch.setattr(pool_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(pool_module.jax, "device_get", fetched)
    pieces = []
    for piece in lm.stream(PROMPTS[0], max_new_tokens=60):
        pieces.append(piece)
        clock[0] += 100  # the reader's own time, which does not count
    assert "".join(pieces) == expected.text
    assert steps[0] == 1 and max(steps) == longest


def test_bursts_of_any_length_run_in_one_program(lm):
    lm.sample([PROMPTS[0]], max_new_tokens=2)
    warm = draw_burst._cache_size()
    for count in (1, 7, 40):
        lm.sample([PROMPTS[0]], max_new_tokens=count, stop="q")
        list(lm.stream(PROMPTS[1], max_new_tokens=count))
    assert draw_burst._cache_size() == warm


def test_compiled_as_for_a_gpu_a_burst_draws_the_same(lm, monkeypatch):
    options = {"max_new_tokens": 20, "sampling": WARM, "seed": 3}
    expected = lm.sample(PROMPTS, **options)
    monkeypatch.setattr(mesh_function, "platform", lambda: "gpu")
    assert_same_samples(lm.sample(PROMPTS, **options), expected)
    assert draw_burst._jitted_for_one_gpu._cache_size() > 0
