"""A run so small that a test can finish it: python -m tests.training.small_run FOLDER"""

import sys

import numpy as np

from griffin_jax.config import GriffinConfig
from griffin_jax.training import Corpus, OptimizerConfig, TrainConfig, Windows, train

MODEL = GriffinConfig(
    vocab_size=64,
    width=16,
    mlp_width=16,
    num_layers=2,
    num_heads=2,
    block_pattern=("recurrent", "attention"),
    attention_window=8,
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


def make_rows(kind=Windows):
    rng = np.random.default_rng(0)
    documents = [
        np.concatenate([[2], np.cumsum(rng.integers(1, 3, size)) % 60 + 4, [1]])
        for size in rng.integers(5, 80, 30)
    ]
    return kind(Corpus("numbers", np.concatenate(documents), bos_id=2), seq_len=16)


if __name__ == "__main__":
    train(make_config(), sys.argv[1], make_rows(), make_rows())
