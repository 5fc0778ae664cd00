"""Measured training steps."""

import jax
import pytest

from griffin_jax.benchmarks import memory
from griffin_jax.benchmarks.training import Variant, measure_lengths
from griffin_jax.models import abstract_params
from griffin_jax.training.flops import train_flops_per_token
from tests.training.small_run import MODEL

OPTIONS = {"dtype": "float32", "repeats": 2}
VARIANTS = [Variant("none"), Variant("block", loss_chunks=2, microbatches=2)]


@pytest.mark.slow
def test_every_variant_at_the_first_length_and_the_fastest_at_the_others():
    rows = list(measure_lengths(MODEL, [16, 32], 64, VARIANTS, document=5, **OPTIONS))
    assert [row["length"] for row in rows] == [16, 16, 32, 16]
    assert [row["batch_size"] for row in rows] == [4, 4, 2, 4]
    assert [row["document"] for row in rows] == [16, 16, 32, 5]
    best = max(rows[:2], key=lambda row: row["tokens_per_second"])
    assert rows[2]["remat"] == rows[3]["remat"] == best["remat"]
    assert rows[3]["compile_seconds"] == best["compile_seconds"]
    for row in rows:
        # Untrained on random tokens: about the entropy of the vocabulary.
        assert 3.5 < row["loss"] < 6
        assert len(row["losses"]) == 4 and row["losses"][-1] == row["loss"] < row["losses"][0]
        assert row["tokens_per_second"] == pytest.approx(64 / row["seconds"]["median"])
        assert row["flops_per_token"] == train_flops_per_token(MODEL, row["length"])
        assert row["memory_bytes"] > 12 * row["parameters"] and row["compile_seconds"] > 0
    assert rows[0]["parameters"] == sum(x.size for x in jax.tree.leaves(abstract_params(MODEL)))


@pytest.mark.slow
def test_what_does_not_fit_is_a_row_that_says_so(monkeypatch):
    monkeypatch.setattr(memory, "limit_bytes", lambda: 1000)
    rows = list(measure_lengths(MODEL, [16, 32], 64, VARIANTS[:1], **OPTIONS))
    assert len(rows) == 1 and "tokens_per_second" not in rows[0]
    assert rows[0]["error"].endswith("of 0.0 GB") and rows[0]["error"].startswith("needs ")


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="length 24 does not divide the 64 tokens"):
        next(measure_lengths(MODEL, [24], 64, VARIANTS))
    with pytest.raises(ValueError, match="3 microbatches do not divide a batch of 4"):
        next(measure_lengths(MODEL, [16], 64, [Variant("none", 1, 3)]))


@pytest.mark.parametrize("text", ["some", "none:0", "none:1:2:3", "none:x"])
def test_a_variant_is_remat_and_two_counts(text):
    assert Variant.parse("dots:8:2") == Variant("dots", 8, 2)
    assert Variant.parse("block") == Variant("block", 1, 1)
    with pytest.raises(ValueError, match="must be REMAT:LOSS_CHUNKS:MICROBATCHES"):
        Variant.parse(text)
