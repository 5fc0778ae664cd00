"""A run that is killed and resumed, that meets NaN, that is told to stop."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from griffin_jax.training import NonFiniteLossError, Windows, train
from griffin_jax.training.run_log import read_metrics
from tests.training.small_run import make_config, make_rows


def assert_same(params, expected):
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, train(make_config(), folder, make_rows(), make_rows())


def test_the_loss_falls_and_the_run_folder_tells_it(uninterrupted):
    folder, result = uninterrupted
    lines = read_metrics(folder / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert result.finished and losses[-1] < 0.7 * losses[0]
    assert {"grad_norm", "learning_rate", "tokens_per_second"} <= lines[-2].keys()
    assert lines[-1] == {"step": 60, "heldout_loss": result.heldout_loss}
    assert (folder / "loss.png").stat().st_size > 1000


def test_the_newest_and_the_best_checkpoint_are_kept(uninterrupted):
    folder, _ = uninterrupted
    lines = read_metrics(folder / "metrics.jsonl")
    best = min((line["heldout_loss"], line["step"]) for line in lines if "heldout_loss" in line)[1]
    kept = {int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {best, 60}


@pytest.mark.slow
def test_killed_at_a_random_step_and_resumed_equals_uninterrupted_bit_for_bit(
    uninterrupted, tmp_path
):
    kill_after = random.choice([10, 20, 30])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.training.small_run", tmp_path],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.DEVNULL,
    )
    metrics = tmp_path / "metrics.jsonl"
    while process.poll() is None:
        if any(line["step"] >= kill_after for line in read_metrics(metrics)):
            process.kill()
            break
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL
    assert (tmp_path / "checkpoints").exists()
    resumed = train(make_config(), tmp_path, make_rows(), make_rows())
    assert resumed.finished
    assert_same(resumed.params, uninterrupted[1].params)


class Interrupts(Windows):
    """Sends SIGTERM when row 30 of the run's second epoch is read."""

    def row(self, epoch, index):
        if epoch == 1 and index == 30:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().row(epoch, index)


def test_sigterm_saves_and_the_run_goes_on_from_there(uninterrupted, tmp_path):
    stopped = train(make_config(), tmp_path, make_rows(Interrupts), make_rows())
    assert not stopped.finished and 0 < stopped.step < 60
    assert (tmp_path / "checkpoints" / str(stopped.step)).exists()
    resumed = train(make_config(), tmp_path, make_rows(), make_rows())
    assert_same(resumed.params, uninterrupted[1].params)
    steps = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    assert steps == sorted(set(steps)) and set(steps) >= {10, 20, 30, 40, 50, 60}


def test_the_time_limit_saves_and_stops(tmp_path):
    result = train(make_config(max_seconds=1e-6), tmp_path, make_rows())
    assert result.step == 1 and not result.finished
    assert (tmp_path / "checkpoints" / "1").exists()


class Poisoned(Windows):
    """Row 30 makes the loss NaN."""

    def row(self, epoch, index):
        row = super().row(epoch, index)
        return row | {"mask": row["mask"] * np.float32(np.nan)} if index == 30 else row


@pytest.mark.slow
def test_a_nan_loss_stops_the_run_and_names_step_data_and_last_good_checkpoint(tmp_path):
    config = make_config(checkpoint_every=2)
    with pytest.raises(NonFiniteLossError) as error:
        train(config, tmp_path, make_rows(Poisoned))
    message = str(error.value)
    assert "\n" not in message and "loss nan" in message
    assert "documents [" in message and "of numbers" in message
    step = int(message.split(":")[0].removeprefix("step "))
    (good,) = (
        int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()
    )
    assert step - 2 <= good < step and f"step {good} is in" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 8}, "seq_len = 16, this config says 8"),
        ({"model": make_config().model.replace(width=32)}, "model.width = 16, .* says 32"),
    ],
)
def test_a_run_of_another_config_is_refused(changes, message, uninterrupted):
    folder, _ = uninterrupted
    before = json.loads((folder / "run.json").read_text())
    with pytest.raises(ValueError, match=message):
        train(make_config(**changes), folder, make_rows())
    assert json.loads((folder / "run.json").read_text()) == before


class Odd:
    """Rows like those of a corpus, with something wrong."""

    def __init__(self, rows, **changes):
        self._rows, self._changes = rows, changes

    def __len__(self):
        return len(self._rows)

    def row(self, epoch, index):
        return self._rows.row(epoch, index) | {
            name: np.full_like(self._rows.row(epoch, index)[name], value)
            for name, value in self._changes.items()
        }

    def describe(self, starts):
        return self._rows.describe(starts)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"inputs": -100}, r"token -100 is outside the model's vocabulary of 64, in documents \["),
        ({"targets": 64}, "token 64 is outside the model's vocabulary of 64"),
        ({"mask": 0}, r"there is no token to learn in documents \["),
    ],
)
def test_rows_that_cannot_be_learned_from_end_the_run_before_a_step(tmp_path, changes, line):
    with pytest.raises(ValueError, match=line) as caught:
        train(make_config(dropout=0.0), tmp_path / "run", Odd(make_rows(), **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_heldout_rows_without_a_target_have_no_loss_and_no_nan_in_the_metrics(tmp_path):
    rows = make_rows()
    config = make_config(steps=6, eval_every=2, checkpoint_every=4, dropout=0.0)
    result = train(config, tmp_path / "run", rows, Odd(rows, mask=0))
    assert result.finished and result.heldout_loss is None
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in text and "heldout_loss" not in text


def test_a_run_beyond_its_last_step_is_told_and_kept(tmp_path, uninterrupted):
    folder, _ = uninterrupted
    before = sorted(path.name for path in (folder / "checkpoints").iterdir())
    with pytest.raises(ValueError, match=r"the run in .* is at step 60 already, beyond steps=20"):
        train(make_config(steps=20), folder, make_rows(), make_rows())
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == before
