"""Reading prompts in calls of a few lengths."""

import jax
import numpy as np
import pytest

from griffin_jax.inference import prefill
from tests.inference.tiny_model import CONFIG, language_model, plain_logits


@pytest.mark.parametrize("batch_size", [1, 4, 64, 4096])
def test_chunks_cover_any_length_with_less_than_half_padding(batch_size):
    for total in [*range(600), 2047, 2048, 2049, 5000, 100_001]:
        lengths = prefill.chunk_lengths(total, batch_size)
        assert sum(lengths) >= total
        assert set(lengths) <= set(prefill.CHUNKS)
        padding = sum(lengths) - total
        assert padding < max(prefill.CHUNKS[0], total)
        assert all(n == prefill.CHUNKS[0] or n * batch_size <= 8192 for n in lengths)


@pytest.mark.parametrize(
    ("total", "batch_size", "lengths"),
    [
        (0, 1, []),
        (512, 1, [512]),
        (300, 1, [256, 32, 32]),
        (400, 1, [512]),
        (128, 1, [32] * 4),
        (129, 1, [256]),
        (129, 32, [32] * 5),  # many rows share what a call costs
        (1100, 1, [512, 512, 32, 32, 32]),
        (4000, 1, [2048, 2048]),
    ],
)
def test_a_cpu_reads_little_padding_in_few_calls(monkeypatch, total, batch_size, lengths):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    chunks = (32, 256, 512, 2048)
    assert prefill.chunk_lengths(total, batch_size, chunks) == lengths


def test_an_accelerator_reads_padding_sooner_than_it_makes_a_call(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    chunks = (32, 256, 512, 2048)
    assert prefill.chunk_lengths(300, 1, chunks) == [512]
    assert prefill.chunk_lengths(1100, 1, chunks) == [2048]
    assert prefill.chunk_lengths(600, 1, chunks) == [512, 32, 32, 32]


def test_a_gpu_reads_a_long_text_in_calls_of_twice_the_length(monkeypatch):
    monkeypatch.setattr(prefill, "CHUNKS", (32, 256, 512, 2048))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert prefill.chunk_lengths(4096, 1) == [4096]
    assert prefill.chunk_lengths(3073, 1) == [4096]  # as much padding as two calls would have
    assert prefill.chunk_lengths(3072, 1) == [2048, 512, 512]
    assert prefill.chunk_lengths(10_300, 1) == [4096, 4096, 2048, 32, 32]
    assert prefill.chunk_lengths(4096, 2) == [2048, 2048]
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert prefill.chunk_lengths(4096, 1) == [2048, 2048]


def test_the_batch_is_the_next_power_of_two():
    assert [prefill.batch_size_for(n) for n in (1, 2, 3, 4, 5, 33)] == [1, 2, 4, 4, 8, 64]


def test_few_numbers_of_slots_serve_an_unbounded_window_and_few_slots_are_unwritten():
    unbounded = CONFIG.replace(attention_window=None)
    sizes = set()
    for tokens in (*range(1, 3000), *range(3000, 32_769, 17), 2**15):
        slots = prefill.capacity_for(unbounded, tokens)
        sizes.add(slots)
        assert slots == 256 or 0 <= slots - tokens < slots / (3 if slots <= 2048 else 5)
    assert sorted(sizes)[:9] == [256, 384, 512, 768, 1024, 1536, 2048, 2560, 3072]
    assert len(sizes) == 7 + 4 * 4
    assert prefill.capacity_for(CONFIG, 5000) is None


def test_chunked_reading_of_unequal_rows_gives_each_row_its_own_state():
    lm = language_model()
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, CONFIG.vocab_size, n).tolist() for n in (1, 0, 75, 40)]
    state = prefill.read(lm.model, lm.params, prefill.fresh_state(lm.model, lm.params, 4, 0), rows)
    np.testing.assert_array_equal(state.position, [len(row) for row in rows])
    logits, _ = lm.apply([[7, 8]] * 4, state)
    for row, found in zip(rows, logits, strict=True):
        np.testing.assert_allclose(found, plain_logits((*row, 7, 8))[-2:], rtol=1e-4, atol=1e-3)


def test_new_lengths_compile_nothing_once_the_chunks_are_warm():
    lm = language_model()

    def read(length):
        state = prefill.fresh_state(lm.model, lm.params, 1, length)
        prefill.read(lm.model, lm.params, state, [[9] * length])

    for length in prefill.CHUNKS:
        read(length)
    warm = prefill.read_chunk._cache_size()
    for length in (1, 2, 7, 8, 9, 31, 32, 33, 100, 257, 500):
        read(length)
    assert prefill.read_chunk._cache_size() == warm


def test_a_state_is_selected_by_copy_so_that_the_original_lives_on():
    lm = language_model()
    state = prefill.fresh_state(lm.model, lm.params, 1, 0)
    state = prefill.read(lm.model, lm.params, state, [[5, 6, 7]])
    before = jax.tree.map(np.array, state)
    forked = prefill.select_rows(lm.model, lm.params, state, [0, 0], 0)
    prefill.read(lm.model, lm.params, forked, [[8], [9, 10]])
    jax.tree.map(np.testing.assert_array_equal, state, before)
