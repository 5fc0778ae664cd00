"""Training from scratch and fine-tuning."""

from griffin_jax.training.config import TrainConfig
from griffin_jax.training.corpus import Corpus, CorpusError, load_corpus
from griffin_jax.training.data import Windows
from griffin_jax.training.loop import NonFiniteLossError, TrainResult, train
from griffin_jax.training.optimizer import OptimizerConfig, adamw
from griffin_jax.training.run_folder import hold_run
from griffin_jax.training.train_step import (
    TrainState,
    make_eval_step,
    make_train_step,
    put_batch,
    shard_state,
    token_losses,
)

__all__ = [
    "Corpus",
    "CorpusError",
    "NonFiniteLossError",
    "OptimizerConfig",
    "TrainConfig",
    "TrainResult",
    "TrainState",
    "Windows",
    "adamw",
    "hold_run",
    "load_corpus",
    "make_eval_step",
    "make_train_step",
    "put_batch",
    "shard_state",
    "token_losses",
    "train",
]
