"""A run that is killed and resumed, that meets NaN, that is told to stop."""

import os
import signal

import jax
import numpy as np
import pytest

from griffin_jax.config import GriffinConfig
from griffin_jax.training import (
    Corpus,
    OptimizerConfig,
    TrainConfig,
    Windows,
    train,
)
from griffin_jax.training.run_log import read_metrics

MODEL = GriffinConfig(
    vocab_size=64, width=16, mlp_width=32, num_layers=3, num_heads=2, attention_window=8
)


def make_config(**changes):
    values = {
        "model": MODEL,
        "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=5),
        "steps": 60,
        "batch_size": 4,
        "seq_len": 16,
        "dtype": "float32",
        "eval_every": 20,
        "eval_batches": 1,
        "checkpoint_every": 10,
    }
    return TrainConfig(**(values | changes))


def make_rows():
    rng = np.random.default_rng(0)
    documents = [
        np.concatenate([[2], np.cumsum(rng.integers(1, 3, size)) % 60 + 4, [1]])
        for size in rng.integers(5, 80, 30)
    ]
    return Windows(Corpus("numbers", np.concatenate(documents), bos_id=2), seq_len=16)


def leaves(params):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, train(make_config(), folder, make_rows(), make_rows())


def test_loss_falls_and_the_run_folder_tells_it(uninterrupted):
    folder, result = uninterrupted
    losses = [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    assert result.finished and losses[-1] < 0.7 * losses[0]
    assert (folder / "loss.png").exists()


@pytest.mark.parametrize("cut", [7, 33])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(
    cut, uninterrupted, tmp_path, monkeypatch
):
    class StopsAt(Windows):
        reads = 0

    def stop_after(self):
        if self.step == cut:
            os.kill(os.getpid(), signal.SIGTERM)

    from griffin_jax.training import loop

    original = loop._Run._one_step

    def one_step(self):
        original(self)
        stop_after(self)

    monkeypatch.setattr(loop._Run, "_one_step", one_step)
    stopped = train(make_config(), tmp_path, make_rows(), make_rows())
    assert stopped.step == cut and not stopped.finished
    monkeypatch.undo()
    resumed = train(make_config(), tmp_path, make_rows(), make_rows())
    assert resumed.finished
    for a, b in zip(leaves(resumed.params), leaves(uninterrupted[1].params), strict=True):
        np.testing.assert_array_equal(a, b)
