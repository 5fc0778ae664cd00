"""What is compiled ahead is what requests need, and changes no text."""

import pytest

from griffin_jax.benchmarks.timing import compilation
from griffin_jax.inference import PrefixCache, compiling, prefill
from griffin_jax.inference.sampling import SamplingConfig
from tests.inference.comparisons import PROMPTS
from tests.inference.tiny_model import language_model

SETTINGS = (
    SamplingConfig(),
    SamplingConfig(temperature=1.0),
    SamplingConfig(temperature=0.7, top_p=0.8),
    SamplingConfig(temperature=1.2, top_k=5, min_p=0.01),
)


@pytest.fixture(scope="module")
def lm():
    return language_model()


def submit(engine, count, tokens):
    return [
        engine.submit(
            [*PROMPTS[i % len(PROMPTS)]], tokens, sampling=SETTINGS[i % len(SETTINGS)], seed=i
        )
        for i in range(count)
    ]


def test_requests_find_their_programs_compiled(lm):
    with lm.engine(slots=4, prefix_cache=PrefixCache(2**20)) as engine:
        engine.compile_ahead()
        (first,) = submit(engine, 1, 2)  # finds what is not the engine's own
        first.result()
        with compilation() as compiled:
            for count in (1, 4, 3, 2):
                requests = submit(engine, count, 70)
                engine.run()
                assert all(request.finish_reason == "length" for request in requests)
        assert compiled.programs == 0


def test_programs_of_many_rows_serve_fewer_until_there_are_others(lm):
    alone = [
        lm.sample([[*PROMPTS[i % len(PROMPTS)]]], 20, sampling=SETTINGS[i], seed=[i])[0]
        for i in range(3)
    ]
    with lm.engine(slots=4) as engine:
        pool = engine._scheduler.pool
        for texts, sizes in (((4,), (4,)), ((1,), (1, 4)), (None, (1, 2, 4))):
            engine.compile_ahead(texts, threads=1)
            assert pool.programs.compiled == sizes
            for count in (1, 2, 3):
                requests = [
                    engine.submit([*PROMPTS[i % len(PROMPTS)]], 20, sampling=SETTINGS[i], seed=i)
                    for i in range(count)
                ]
                engine.run()
                assert len(pool.requests) in sizes
                for request, expected in zip(requests, alone, strict=False):
                    assert request.result().tokens == expected.tokens


@pytest.mark.parametrize("exact", [None, True, False])
def test_long_calls_that_are_not_compiled_yet_are_not_waited_for(lm, monkeypatch, exact):
    monkeypatch.setattr(prefill, "CHUNKS", (8, 32))
    prompt = [*PROMPTS[2]] * 3
    prompt = prompt[:90]
    (alone,) = lm.sample([prompt], 6)
    cache = None if exact is None else PrefixCache(2**20, every=32, exact=exact)
    with lm.engine(slots=1, prefix_cache=cache) as engine:
        engine.compile_ahead(longest=8, sampling=False)
        engine.submit(prompt[:3], 2).result()  # finds what is not the engine's own
        for longest in (8, None):
            with compilation() as compiled:
                found = engine.submit(prompt, 6).result()
            assert compiled.programs == 0 and found.tokens == alone.tokens
            if exact and longest:
                # Other calls round otherwise, so that nobody may go on from there.
                assert cache.find(tuple(prompt), 89, 0) is None
            elif cache is not None:
                assert cache.find(tuple(prompt), 89, 0)[0] >= 64
            engine.compile_ahead(sampling=False)
            engine.compile_ahead(longest=8, sampling=False)  # takes nothing away
            assert engine._scheduler.reader.longest is None


def test_one_program_serves_whatever_else_a_request_may_need(lm):
    kinds = (
        {"sampling": SETTINGS[2]},
        {"temperature": 1.0, "presence_penalty": 0.5, "repetition_penalty": 1.2},
        {"logit_bias": {70: 2.0}},
        {"temperature": 0.5, "min_tokens": 4},
        {"allowed_tokens": (70, 71, 72)},
    )
    prompt = [*PROMPTS[1]]
    alone = [lm.sample([prompt], 12, seed=[i], **kind)[0] for i, kind in enumerate(kinds[:3])]
    with lm.engine(slots=4) as engine:
        engine.compile_ahead(everything=True)
        engine.submit(prompt, 2).result()
        with compilation() as compiled:
            for order in ((0, 1, 2), (2, 0), (1,), (0,), (3, 0, 4), (0, 0)):
                requests = {i: engine.submit(prompt, 12, seed=i, **kinds[i]) for i in order}
                engine.run()
                for i, request in requests.items():
                    if i < 3:
                        assert request.result().tokens == alone[i].tokens
                    assert request.result().finish_reason == "length"
        assert compiled.programs == 0
        # Who needs nothing of the kind has the rows of fewer texts again.
        engine.submit(prompt, 80).result()
        assert len(engine._scheduler.pool.requests) == 1


def test_nothing_more_is_compiled_for_an_engine_that_is_closed(lm, monkeypatch):
    lowered = []
    monkeypatch.setattr(compiling, "lower_read", lambda *_: lowered.append(1))
    engine = lm.engine(slots=2)
    engine.close()
    with compilation() as compiled:
        engine.compile_ahead(threads=1)
    assert not lowered
    assert compiled.programs == 0
