"""Hawk (recurrent blocks only) of griffin-tiny's size, on the same tokens in the same order.

    python -m experiments.train --config=configs/train_hawk_tiny.py --run=runs/hawk-tiny \\
        --config.train=train.jsonl.xz --config.heldout=heldout.jsonl.xz

32,333,760 parameters, 0.7% fewer than griffin-tiny; 193 MFLOP a token. Hardware as there.
"""

from ml_collections import ConfigDict

from configs import train_griffin_tiny
from griffin_jax.config import RECURRENT

MODEL = train_griffin_tiny.MODEL.replace(block_pattern=(RECURRENT,), mlp_width=1280)


def get_config() -> ConfigDict:
    """As griffin-tiny's, but for the model."""
    config = train_griffin_tiny.get_config()
    config.model = MODEL.to_dict()
    return config
