"""An MQA Transformer (unbounded attention only) of griffin-tiny's size, on the same tokens.

    python -m experiments.train --config=configs/train_transformer_tiny.py \\
        --run=runs/transformer-tiny \\
        --config.train=train.jsonl.xz --config.heldout=heldout.jsonl.xz

32,455,872 parameters, 0.3% fewer than griffin-tiny; 227 MFLOP a token. Hardware as there.
"""

from ml_collections import ConfigDict

from configs import train_griffin_tiny
from griffin_jax.config import ATTENTION

MODEL = train_griffin_tiny.MODEL.replace(
    block_pattern=(ATTENTION,), attention_window=None, mlp_width=1440
)


def get_config() -> ConfigDict:
    """As griffin-tiny's, but for the model."""
    config = train_griffin_tiny.get_config()
    config.model = MODEL.to_dict()
    return config
