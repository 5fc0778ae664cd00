"""Trains a model: python -m experiments.train --config=configs/train_tiny.py --run=runs/NAME

Reads text, JSON lines (.xz too) or token files; writes checkpoints, metrics.jsonl, TensorBoard
files, loss.png and, at the end, the parameters (model/) into the run's folder. Called again, it
goes on where it stopped. Any field of the config is a flag: --config.steps=100
"""

import logging
import sys
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import config_flags

from griffin_jax import checkpoints, training
from griffin_jax.config import GriffinConfig
from griffin_jax.tokenizer import load_tokenizer

_CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/train_tiny.py", "The experiment; its docstring says what it needs."
)
_RUN = flags.DEFINE_string("run", "runs/train", "Folder of the run.")
_CACHE = flags.DEFINE_string("cache", "runs/cache", "Folder of tokenised corpora.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.getLogger("absl").setLevel(logging.WARNING)
    fields = _CONFIG.value.to_dict()
    tokenizer = load_tokenizer(fields.pop("tokenizer"))
    files = {name: fields.pop(name).split(",") for name in ("train", "heldout")}
    fields["model"] = GriffinConfig.from_dict(fields["model"])
    fields["optimizer"] = training.OptimizerConfig(**fields["optimizer"])
    config = training.TrainConfig(**fields)

    def windows(paths):
        corpus = training.load_corpus(paths, tokenizer, Path(_CACHE.value))
        return training.Windows(corpus, config.seq_len, config.seed)

    rows = windows(files["train"])
    heldout = windows(files["heldout"]) if any(files["heldout"]) else None
    print(
        f"{len(rows.corpus.tokens):,} tokens, {len(rows):,} sequences an epoch, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    )
    result = training.train(config, Path(_RUN.value), rows, heldout)
    if result.tokens_per_second:
        print(f"steady state: {result.tokens_per_second:,.0f} tokens/s")
    if not result.finished:
        print(
            f"stopped at step {result.step} of {config.steps}; the same command goes on from there"
        )
        return
    model = Path(_RUN.value) / "model"
    checkpoints.save_checkpoint(model, config.model, result.params, format="orbax")
    print(f"{model}: the trained model")


if __name__ == "__main__":
    try:
        app.run(main)
    except (ValueError, OSError, training.NonFiniteLossError) as error:
        sys.exit(f"train: {error}")
