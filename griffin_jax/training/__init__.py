"""Training from scratch and fine-tuning."""

from griffin_jax.training.config import TrainConfig
from griffin_jax.training.corpus import Corpus, CorpusError, load_corpus
from griffin_jax.training.data import Windows
from griffin_jax.training.loop import NonFiniteLossError, TrainResult, train
from griffin_jax.training.optimizer import OptimizerConfig

__all__ = [
    "Corpus",
    "CorpusError",
    "NonFiniteLossError",
    "OptimizerConfig",
    "TrainConfig",
    "TrainResult",
    "Windows",
    "load_corpus",
    "train",
]
