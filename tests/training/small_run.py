"""A run so small that a test can finish it: python -m tests.training.small_run FOLDER [STEPS DROPOUT]"""

import json
import sys

import jax
import jax.numpy as jnp
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
        "dropout": 0.1,
        "ema": 0.9,
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


def run_and_describe(folder, steps=60, dropout=0.1):
    """Trains, and tells the norm of every parameter and how many are split over devices."""
    config = make_config(
        steps=int(steps),
        dropout=float(dropout),
        optimizer=OptimizerConfig(1e-2, warmup_steps=min(5, int(steps) - 1)),
    )
    params = train(config, folder, make_rows(), make_rows()).params
    facts = {
        jax.tree_util.keystr(path): float(jnp.linalg.norm(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    split = sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(params))
    return {"devices": jax.device_count(), "split": split, "norms": facts}


if __name__ == "__main__":
    print(json.dumps(run_and_describe(*sys.argv[1:])))
