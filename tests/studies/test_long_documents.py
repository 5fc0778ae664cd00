"""Reading in chunks: books and questions are the task's, and the forks' answers are greedy ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.models import Griffin
from griffin_jax.studies import (
    LongDocumentsStudy,
    Needle,
    Phonebook,
    long_documents,
    long_documents_report,
)
from tests.tiny import GRIFFIN, params_of

TASK = Phonebook(length=100, letters=5, name=3, number=4)
STUDY = LongDocumentsStudy(
    title="t", entries=3, chunks=(1, 2), rows=2, batch_size=2, models=("Griffin",)
)


@pytest.fixture(scope="module")
def model():
    config = GRIFFIN.replace(vocab_size=TASK.vocab_size, num_layers=1)
    params = params_of(config)
    return Griffin(config), jax.tree.map(lambda x: jnp.stack([x, -x]), params)


def test_a_book_holds_its_answer():
    drawn = long_documents.texts(TASK, entries=6, count=5, seed=0)
    assert drawn["text"].shape == (5, 6, TASK.entry) and drawn["answer"].shape == (5, 4)
    assert len({tuple(x) for x in drawn["answer"]}) == 5
    for book, question, answer in zip(*drawn.values(), strict=True):
        assert question[0] == 2 and len(question) == TASK.question
        name = question[-TASK.name - 1 : -1]
        (entry,) = (x for x in book if (x[: TASK.name] == name).all())
        np.testing.assert_array_equal(entry[TASK.name + 1 : -1], answer)


def test_a_text_holds_its_needle_and_is_cut_anywhere():
    task = Needle(length=9, number=2, others=1)
    drawn = long_documents.texts(task, entries=21, count=5, seed=0)
    assert drawn["text"].shape == (5, 21, 1) and drawn["answer"].shape == (5, 2)
    for text, question, answer in zip(*drawn.values(), strict=True):
        assert question[0] == 0 and len(question) == task.question
        (place,) = np.flatnonzero(text[:, 0] == question[1])
        np.testing.assert_array_equal(text[place + 1 : place + 3, 0], answer)


@pytest.mark.slow
def test_answers_are_greedy_ones_of_the_whole_text(model):
    griffin, stacked = model
    params = jax.tree.map(lambda x: x[0], stacked)
    drawn = long_documents.texts(TASK, entries=6, count=2, seed=0)
    found, certain = long_documents._answers(STUDY, griffin, params, drawn, 2)
    assert found.shape == (2, 2, 4)
    chunk = drawn["text"][1, 3:].ravel()
    text, total = np.concatenate([chunk, drawn["question"][1]]), 0.0
    for token in found[1, 1]:
        logits = griffin.apply({"params": params}, text[None])[0][0, -1]
        assert token == np.argmax(logits)
        total += float(jax.nn.log_softmax(logits)[token])
        text = np.append(text, token)
    np.testing.assert_allclose(certain[1, 1], total, rtol=1e-4)


@pytest.mark.slow
def test_rows_and_the_page_have_every_size_and_seed(model, tmp_path):
    pytest.importorskip("matplotlib")
    rows = list(long_documents.measure(STUDY, TASK, {"Griffin": model}))
    assert [(x["chunks"], x["run"]) for x in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for row in rows:
        assert 0 <= row["chunks read"] <= row["best chunk"] <= 1
        if row["chunks"] == 1:
            assert row["one pass"] == row["chunks read"] == row["best chunk"]
    found = dataclasses.asdict(STUDY) | {"rows": rows, "device": "a CPU", "command": "python -m x"}
    png, page = long_documents_report.write("some", found, tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert page.read_text(encoding="utf-8").count("\n| Griffin") == 2
