"""Rows that only fill up a call, or belong to no text, neither change others nor are changed."""

import jax
import numpy as np
import pytest

from griffin_jax.inference.decode import draw_burst, empty_rows, entry_of, insert_row, take
from griffin_jax.inference.drawing import Needs, settings_of
from griffin_jax.inference.row_states import fresh_row, per_row, read_rows, rows_of_a_call
from tests.inference.tiny_model import WINDOW, language_model

CHUNKS = [[7, 8, 9], [20] * 8, [30, 31]]


@pytest.fixture(scope="module")
def lm():
    return language_model()


@pytest.fixture(scope="module")
def read(lm):
    """States after some texts, each read alone."""
    fresh = fresh_row(lm.model, lm.params, 1)
    return [read_rows(lm.model, lm.params, [fresh], [chunk], 8)[0][0] for chunk in CHUNKS]


def assert_equal(one, other, atol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), one, other)


def row(state, slot):
    return per_row(lambda axis, x: jax.lax.slice_in_dim(x, slot, slot + 1, axis=axis), state)


def test_a_call_that_is_filled_up_reads_each_text_as_alone_and_overwrites_none(lm, read):
    assert (
        rows_of_a_call(len(CHUNKS), lm.params) == 4
    )  # the fourth is a copy of the first, of no tokens
    before = jax.device_get(read)
    after, _ = read_rows(lm.model, lm.params, read, CHUNKS[::-1], 8)
    assert len(after) == 3
    for state, again, chunk in zip(read, after, CHUNKS[::-1], strict=True):
        ((alone,), _) = read_rows(lm.model, lm.params, [state], [chunk], 8)
        assert_equal(again, alone, atol=1e-5)
    assert_equal(read, before)


def pool(lm, read, slots):
    """Four rows, those of `slots` with a text, and the free ones."""
    rows = empty_rows(lm.model, lm.params, 4, 1)
    for slot, state in zip(slots, read, strict=False):
        entry = entry_of(5, 2 * WINDOW, 0, np.zeros(2, np.uint32), (), settings_of(None))
        rows = insert_row(rows, np.int32(slot), entry.replace(state=state))
    return rows


def draw(lm, rows):
    wanted = np.ones(4, bool)
    return draw_burst(lm.model, 16, Needs(), (), lm.params, rows, wanted, np.int32(2 * WINDOW))


def test_free_rows_stay_as_they_are_and_the_last_row_is_no_place_for_padding(lm, read):
    fresh = jax.device_get(empty_rows(lm.model, lm.params, 4, 1))
    rows, (tokens, _) = draw(lm, pool(lm, read, [2, 0]))
    assert (np.asarray(tokens)[[1, 3]] == -1).all()
    for free in (1, 3):
        assert_equal(row(rows.state, free), row(fresh.state, free))
    _, (full, _) = draw(lm, pool(lm, read, [2, 0, 3]))
    np.testing.assert_array_equal(np.asarray(tokens)[[0, 2]], np.asarray(full)[[0, 2]])


def test_rows_that_are_taken_leave_copies_that_nobody_draws_in(lm, read):
    expected = np.asarray(draw(lm, pool(lm, read, [2, 3]))[1][0])[[2, 3]]
    # The rows behind those in use are copies of row 0, and belong to no text.
    taken = take(pool(lm, read, [2, 3]), np.array([2, 3, 0, 0]), np.array([1, 1, 0, 0], bool))
    assert taken.alive.tolist() == [True, True, False, False]
    tokens = np.asarray(draw(lm, taken)[1][0])
    np.testing.assert_array_equal(tokens[:2], expected)
    assert (tokens[2:] == -1).all()
