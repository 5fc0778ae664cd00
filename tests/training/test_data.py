"""Windows over a corpus and the order they come in."""

import numpy as np
import pytest

from griffin_jax.sharding import RowGroup
from griffin_jax.training.corpus import Corpus, CorpusError
from griffin_jax.training.data import Windows, evaluation_batches, training_batches

TOKENS = np.array([2, 10, 11, 1, 2, 12, 13, 14, 15, 1, 2, 16, 1, 2, 17, 18, 1], np.uint16)
CORPUS = Corpus("letters", TOKENS, bos_id=2)


def test_positions_restart_and_the_next_bos_is_not_predicted():
    row = Windows(CORPUS, 8).row(0, 0)
    np.testing.assert_array_equal(row["inputs"], TOKENS[:8])
    np.testing.assert_array_equal(row["targets"], TOKENS[1:9])
    np.testing.assert_array_equal(row["positions"], [0, 1, 2, 3, 0, 1, 2, 3])
    np.testing.assert_array_equal(row["mask"], [1, 1, 1, 0, 1, 1, 1, 1])


def test_an_epoch_predicts_every_token_once_and_each_epoch_cuts_elsewhere():
    tokens = np.arange(3, 3 + 64)
    windows = Windows(Corpus("count", tokens, bos_id=2), 8, seed=3)
    firsts = []
    for epoch in range(3):
        rows = [windows.row(epoch, i) for i in range(len(windows))]
        assert sorted(np.concatenate([row["targets"] for row in rows])) == list(tokens)
        for row in rows:
            np.testing.assert_array_equal(row["targets"], (row["inputs"] - 2) % 64 + 3)
        firsts.append(int(rows[0]["inputs"][0]))
    assert len(set(firsts)) == 3


def batches(count, state=None, **options):
    iterator = training_batches(Windows(CORPUS, 4), 2, seed=5, **options)
    if state:
        iterator.set_state(state)
    return [next(iterator) for _ in range(count)], iterator.get_state()


def test_the_order_is_fixed_by_the_seed_and_resumes_at_the_exact_batch():
    whole, _ = batches(12)
    before, state = batches(5)
    after, _ = batches(7, state)
    for batch, expected in zip(before + after, whole, strict=True):
        for name in expected:
            np.testing.assert_array_equal(batch[name], expected[name])
    # Four windows an epoch: the first two batches see all of them, in another order than the next.
    starts = [list(batch["start"]) for batch in whole]
    assert sorted(starts[0] + starts[1]) == [0, 4, 8, 12]
    assert starts[:2] != starts[2:4]


def test_processes_share_each_batch():
    whole, _ = batches(6)
    groups = [RowGroup(index=i, count=2, shards=(i,)) for i in range(2)]
    parts = [batches(6, places=group.places(2))[0] for group in groups]
    for batch, *shards in zip(whole, *parts, strict=True):
        shared = [start for shard in shards for start in shard["start"]]
        assert shared == list(batch["start"])
    with pytest.raises(ValueError, match=r"batch of 2 does not divide over 3 parts; .* is 3"):
        RowGroup(index=0, count=3, shards=(0,)).places(2)


def test_each_part_of_an_evaluation_is_rows_of_the_whole():
    whole = list(evaluation_batches(Windows(CORPUS, 4), 4, 2))
    part = list(evaluation_batches(Windows(CORPUS, 4), 4, 2, places=[1, 3]))
    for batch, rows in zip(whole, part, strict=True):
        for name, values in batch.items():
            np.testing.assert_array_equal(rows[name], values[[1, 3]])


def test_evaluation_counts_each_row_once():
    (batch, *more) = evaluation_batches(Windows(CORPUS, 4), 3, 2)
    starts = np.concatenate([batch["start"], more[0]["start"]])
    counts = np.concatenate([batch["mask"], more[0]["mask"]]).max(axis=1)
    assert sorted(starts[counts > 0]) == [0, 4, 8, 12]


def test_a_corpus_shorter_than_a_sequence_is_refused():
    with pytest.raises(CorpusError, match="17 tokens are less than one sequence of 18"):
        Windows(CORPUS, 18)


def test_rows_are_described_by_their_documents():
    assert "documents [0, 1] of letters" in Windows(CORPUS, 4).describe(np.array([0]))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("seq_len", [4, 16])
def test_any_batch_size_goes_round_and_round(size, seq_len):
    rows = Windows(CORPUS, seq_len)
    iterator = training_batches(rows, size, seed=5)
    seen = [int(start) for _ in range(3 * len(rows)) for start in next(iterator)["start"]]
    assert len(seen) == 3 * len(rows) * size
    # Every row of the first epoch comes once before any comes again.
    assert sorted(seen[: len(rows)]) == [i * seq_len for i in range(len(rows))]
    again = training_batches(rows, size, seed=5)
    again.set_state(iterator.get_state())
    np.testing.assert_array_equal(next(again)["inputs"], next(iterator)["inputs"])
