"""What the prefix cache keeps and finds, and that texts are what they are without it."""

import jax
import numpy as np
import pytest

from griffin_jax.inference import PrefixCache, SamplingConfig, prefill
from griffin_jax.inference.reader import next_chunk
from griffin_jax.inference.row_states import fresh_row, nbytes
from griffin_jax.language_model import LanguageModel
from tests.inference.tiny_model import CONFIG, language_model

EVERY = 8
WARM = SamplingConfig(temperature=1.0)


@pytest.fixture(scope="module")
def lm():
    return language_model()


@pytest.fixture(scope="module")
def row_bytes(lm):
    return nbytes(fresh_row(lm.model, lm.params, 1))


def draw(count, seed):
    return np.random.default_rng(seed).integers(5, CONFIG.vocab_size, count).tolist()


def run(lm, prompts, cache, slots=1, **options):
    """Requests that have ended, one engine for all."""
    options = {"max_new_tokens": 3, "sampling": WARM} | options
    with lm.engine(slots=slots, seconds=None, fill_first=True, prefix_cache=cache) as engine:
        requests = [engine.submit(p, seed=i, **options) for i, p in enumerate(prompts)]
        engine.run()
    return requests, engine.stats


@pytest.mark.parametrize(("every", "far"), [(8, None), (32, None), (256, None), (8, 32), (24, 64)])
def test_calls_end_at_the_same_places_for_all_texts_that_reach_them(every, far):
    cache = PrefixCache(every=every)
    cache.far = far
    paths = {}
    for total in [*range(1, 150), 500, 1000]:
        position, ends = 0, []
        while position < total:
            count, length = next_chunk(position, total - position, every, far)
            assert 0 < count <= length
            position += count
            ends.append((position, length))
        assert position == total
        borders = [end for end in ends if cache.keeps_at(end[0])]
        assert {end for end, _ in borders} >= {n for n in range(1, total + 1) if cache.keeps_at(n)}
        for end, _ in borders:
            so_far = [e for e in ends if e[0] <= end]
            assert paths.setdefault(end, so_far) == so_far


@pytest.mark.parametrize(("far", "found"), [(None, 5 * EVERY), (4 * EVERY, 4 * EVERY)])
def test_a_text_that_goes_on_from_the_cache_has_the_very_bits_of_one_that_does_not(lm, far, found):
    def cache(size):
        made = PrefixCache(size, every=EVERY)
        made.far = far
        return made

    shared = draw(5 * EVERY + 3, 0)
    prompts = [shared + draw(n, n) for n in (1, 4, 20)]
    requests, stats = run(lm, prompts, cache(2**30), keep_context=True)
    assert [r.cached_tokens for r in requests] == [0, found, found]
    assert stats.read_tokens == stats.alone_tokens - stats.cached_tokens
    # A cache without room keeps nothing, and the texts are read by the same calls.
    cold, nothing = run(lm, prompts, cache(0), keep_context=True)
    assert nothing.cached_tokens == 0
    for request, other in zip(requests, cold, strict=True):
        assert request.result() == other.result()
        jax.tree.map(np.testing.assert_array_equal, request.context().state, other.context().state)


def test_what_texts_have_in_common_is_read_once_also_when_they_come_together(lm):
    shared = draw(6 * EVERY, 0)
    prompts = [shared + draw(3, 1 + i) for i in range(4)]
    _, stats = run(lm, prompts, PrefixCache(every=EVERY), slots=4)
    assert stats.read_tokens == 6 * EVERY + 4 * 2
    alone, _ = run(lm, prompts, None, slots=4)
    cached, _ = run(lm, prompts, PrefixCache(every=EVERY), slots=4)
    assert [r.result().tokens for r in alone] == [r.result().tokens for r in cached]


def test_hits_and_the_reasons_of_misses_are_counted(lm, row_bytes):
    cache = PrefixCache(2 * row_bytes, every=EVERY)
    long, other = draw(4 * EVERY + 1, 0), draw(2 * EVERY + 1, 1)
    run(lm, [long], cache)
    assert cache.stats.misses == {"unknown": 1}
    assert cache.device_bytes == 2 * row_bytes
    run(lm, [long[:5]], cache)
    assert cache.stats.misses == {"unknown": 1, "short": 1}
    (request,), _ = run(lm, [long], cache)
    assert (request.cached_tokens, cache.stats.hits) == (4 * EVERY, 1)
    run(lm, [other], cache)  # which takes the room of both states
    run(lm, [long], cache)
    assert cache.stats.misses == {"unknown": 2, "short": 1, "evicted": 1}
    assert cache.stats.hits == 1
    assert cache.stats.tokens_saved == 4 * EVERY
    assert cache.stats.stored - cache.stats.evicted == 2


def test_a_hit_needs_a_state_behind_it(lm, row_bytes):
    """A beginning that is known by its tokens alone is read."""
    cache = PrefixCache(row_bytes, every=EVERY)
    text = draw(3 * EVERY + 1, 0)
    run(lm, [text], cache)  # of three states the last one is left
    (request,), _ = run(lm, [text[: 2 * EVERY] + draw(4, 5)], cache)
    assert request.cached_tokens == 0
    (alone,) = lm.sample([request.plan.tokens], 3, sampling=WARM)
    assert request.result().tokens == alone.tokens


def test_states_that_leave_the_device_come_back_from_the_host_as_they_were(lm, row_bytes):
    cache = PrefixCache(row_bytes, host_bytes=20 * row_bytes, every=EVERY)
    texts = [draw(2 * EVERY + 3, i) for i in range(4)]
    first, _ = run(lm, texts, cache)
    assert (cache.device_bytes, cache.host_bytes) == (row_bytes, 7 * row_bytes)
    again, stats = run(lm, texts, cache)
    assert stats.cached_tokens == 4 * 2 * EVERY
    assert cache.stats.evicted == 0
    assert [r.result() for r in again] == [r.result() for r in first]


def test_states_stay_within_their_bytes_whatever_comes(lm, row_bytes):
    cache = PrefixCache(3 * row_bytes, host_bytes=2 * row_bytes, every=EVERY)
    for i in range(12):
        run(lm, [draw(EVERY * (1 + i % 4) + 1, i % 7)], cache)
        assert cache.device_bytes <= 3 * row_bytes
        assert cache.host_bytes <= 2 * row_bytes
        assert cache.device_bytes % row_bytes == cache.host_bytes % row_bytes == 0
    cache.clear()
    assert cache.device_bytes == cache.host_bytes == 0


def test_turn_ends_and_places_where_prompts_part_are_kept_where_bits_may_differ(lm):
    cache = PrefixCache(every=10_000, exact=False)
    shared = draw(200, 0)
    prompts = [shared + draw(30, 1 + i) for i in range(4)]
    requests, stats = run(lm, prompts, cache)
    # The second finds where it parts from the first, and keeps the state there.
    assert [r.cached_tokens for r in requests] == [0, 0, 200, 200]
    assert stats.read_tokens == 2 * 229 + 2 * 29
    again, stats = run(lm, prompts, cache)
    assert stats.read_tokens == 0
    turn = [*prompts[0], *again[0].result().tokens, 70, 71]
    (request,), stats = run(lm, [turn], cache)
    assert (
        stats.read_tokens == 2
    )  # the last token that was drawn, which no state has read, and one more
    for found in (*requests, *again, request):
        seed = requests.index(found) if found in requests else 0
        if found in again:
            seed = again.index(found)
        (alone,) = lm.sample([found.plan.tokens], 3, sampling=WARM, seed=[seed])
        assert found.result().tokens == alone.tokens
        np.testing.assert_allclose(found.result().logprobs, alone.logprobs, atol=1e-5)


def test_a_shifted_prompt_misses_and_one_that_goes_on_hits_wherever_it_ends(lm):
    cache = PrefixCache(every=EVERY)
    text = draw(10 * EVERY, 0)
    run(lm, [text], cache)
    (shifted,), _ = run(lm, [[5, *text]], cache)
    assert shifted.cached_tokens == 0
    for cut in range(2 * EVERY + 1, 5 * EVERY):
        (request,), _ = run(lm, [[*text[:cut], 5]], cache, max_new_tokens=1)
        assert request.cached_tokens == cut // EVERY * EVERY


def test_a_first_token_costs_a_cpu_no_more_than_a_twentieth_more_with_a_cache(monkeypatch):
    """Calls of the lengths of users: their tokens, and of each what it takes to decode the weights."""
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(prefill, "CHUNKS", (32, 256, 512, 2048))
    cache = PrefixCache()

    def cost(total, every, far):
        position = found = 0
        while position < total:
            count, length = next_chunk(position, total - position, every, far)
            position, found = position + count, found + length + 32
        return found

    for total in [*range(1, 1100), *range(1100, 5000, 61)]:
        assert cost(total, cache.every, cache.far) <= 1.05 * cost(total, None, None)


def test_a_full_cache_neither_reads_nor_keeps_more_for_a_first_token(lm, row_bytes, monkeypatch):
    """What is done for a text follows from its borders, not from what the cache holds."""
    cache = PrefixCache(2 * row_bytes, host_bytes=4 * row_bytes, every=4 * EVERY)
    for i in range(4):
        run(lm, [draw(8 * EVERY + 1, i)], cache, max_new_tokens=1)
    walks, stored = [], cache.stats.stored
    walk = PrefixCache._walk
    monkeypatch.setattr(
        PrefixCache, "_walk", lambda self, tokens: walks.append(0) or walk(self, tokens)
    )
    text = draw(12 * EVERY + 1, 9)
    _, alone = run(lm, [text], None, max_new_tokens=1)
    _, stats = run(lm, [text], cache, max_new_tokens=1)
    assert stats.padded_tokens == alone.padded_tokens == 12 * EVERY
    assert stats.read_calls == alone.read_calls == 3
    assert cache.stats.stored - stored == 3
    # To look up and to count it, to look up before each call, and to keep what it has read.
    assert len(walks) <= 2 + 2 * stats.read_calls


@pytest.mark.parametrize("changed", [slice(None), slice(-1, None)])
def test_a_cache_belongs_to_one_model(lm, changed):
    cache = PrefixCache(every=EVERY)
    run(lm, [draw(20, 0)], cache)
    leaves, structure = jax.tree.flatten(lm.params)
    leaves[changed] = [leaf + 0 for leaf in leaves[changed]]  # the others are shared
    other = LanguageModel(CONFIG, jax.tree.unflatten(structure, leaves))
    with pytest.raises(ValueError, match="the prefix cache belongs to another model"):
        other.engine(prefix_cache=cache)
    with lm.engine(prefix_cache=cache):
        cache.clear()
        with pytest.raises(ValueError, match="close this one's engines and clear"):
            other.engine(prefix_cache=cache)  # the first one goes on to keep states
    cache.clear()
    other.engine(prefix_cache=cache)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"device_bytes": -1}, "device_bytes must be a whole number of at least 0, got -1"),
        ({"host_bytes": 0.5}, "host_bytes must be a whole number"),
        ({"every": 0}, "every must be a whole number of at least 1, got 0"),
        ({"exact": 1}, "exact must be true or false, got 1"),
    ],
)
def test_wrong_values_are_named_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        PrefixCache(**options)
