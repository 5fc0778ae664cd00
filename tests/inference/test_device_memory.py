"""How many rows fit, and texts at positions that no text has reached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import command
from griffin_jax.inference import prefill
from griffin_jax.inference.device_memory import most_rows
from tests.inference.tiny_model import CONFIG, language_model

TOKENS = 20


def nbytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def one_row(lm):
    return nbytes(prefill.fresh_state(lm.model, lm.params, 1, TOKENS)) + 4 * CONFIG.vocab_size


def test_as_many_rows_fit_as_the_memory_beside_the_weights_holds():
    lm = language_model()
    for rows in (0, 1, 5):
        limit = nbytes(lm.params) + rows * one_row(lm)
        assert most_rows(CONFIG, lm.params, lm.dtype, TOKENS, limit) == rows
    assert most_rows(CONFIG, lm.params, lm.dtype, TOKENS, 10) == 0


@pytest.mark.parametrize(
    ("room", "rows", "message"),
    [(5, 4, None), (5, 5, "run as 8, do not fit .*: 4 would fit"), (0, 1, "no row fits")],
)
def test_a_command_refuses_a_batch_that_cannot_fit(monkeypatch, room, rows, message):
    lm = language_model()
    limit = nbytes(lm.params) + room * one_row(lm)

    class Device:
        def memory_stats(self):
            return {"bytes_limit": limit}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])

    class Settings:
        batch_size, max_new_tokens = 8, 4

    if message is None:
        command.check_batch(lm, Settings, ["a"] * rows)
        return
    with pytest.raises(ValueError, match=f"config.batch_size=8: {rows} rows, .*{message}"):
        command.check_batch(lm, Settings, ["a"] * rows)


def test_an_engine_of_more_slots_than_fit_says_how_many_would(monkeypatch):
    lm = language_model()
    limit = nbytes(lm.params) + 5 * one_row(lm)

    class Device:
        def memory_stats(self):
            return {"bytes_limit": limit}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    lm.engine(slots=4)
    with pytest.raises(ValueError, match=r"slots=5: 5 rows, .* do not fit .*: 4 would fit"):
        lm.engine(slots=5)


def test_the_state_is_as_large_and_finite_behind_a_million_tokens():
    lm = language_model()
    state = prefill.fresh_state(lm.model, lm.params, 1, 1)
    before = nbytes(state)
    begin = 1_000_000 - 40
    state = state.replace(position=jnp.full_like(state.position, begin))
    state = prefill.read(lm.model, lm.params, state, [list(range(5, 105))])
    assert nbytes(state) == before
    assert state.position.dtype == jnp.int32
    assert state.position.tolist() == [begin + 100]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
