"""A training run to try things with: the `tiny` shape learns a little Python from its own source.

    python -m experiments.train --config=configs/train_tiny.py

Hardware: any CPU; below 1 GB of memory and about a minute. Expected: the loss falls from 9 nats to
about 3, for the few pages come by more than once; nothing of use is learned.
"""

from pathlib import Path

from ml_collections import ConfigDict

import griffin_jax
from griffin_jax.config import TINY

SOURCE = Path(griffin_jax.__file__).parent / "models"
MODULES = ("blocks", "griffin", "layers", "rglru", "state")


def get_config() -> ConfigDict:
    """The settings; see griffin_jax.training.TrainConfig."""
    config = ConfigDict()
    config.model = TINY.replace(vocab_size=8192).to_dict()
    config.init_from = ""
    config.tokenizer = "griffin-tiny"
    config.train = ",".join(str(SOURCE / f"{name}.py") for name in MODULES)
    config.heldout = str(SOURCE / "attention.py")
    config.steps = 60
    config.batch_size = 4
    config.seq_len = 128
    config.dtype = "float32"
    config.dropout = 0.0
    config.ema = 0.0
    config.optimizer = {"learning_rate": 3e-3, "warmup_steps": 10}
    config.log_every = 5
    config.checkpoint_every = 20
    config.mesh = {"data": 1, "fsdp": -1, "model": 1, "sequence": 1}
    config.max_seconds = 0.0
    return config
