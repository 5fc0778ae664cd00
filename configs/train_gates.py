"""Griffin with the other recurrences of its paper (arXiv:2402.19427, appendices A and B).

    python -m experiments.train --config=configs/train_gates.py:cg_lru --run=runs/cg-lru \\
        --config.train=train.jsonl.xz --config.heldout=heldout.jsonl.xz

The variants are the kinds of recurrent blocks: recurrent (the RG-LRU), lru (a constant decay), gru,
mamba and cg_lru (the complex-gated LRU). Each is griffin-tiny with that kind in place of the RG-LRU, on
the same tokens in the same order, so that their held-out losses can be compared. Kinds without an
input gate have fewer parameters. Hardware and time as for configs/train_griffin_tiny.py; the CG-LRU
runs by XLA's associative scan, without a kernel of its own.

    python -m experiments.train --config=configs/train_gates.py:tiny

trains a small model that has a layer of each kind, on the package's own source: seconds on any CPU.
`--config.model.block_pattern="('mamba','mamba','attention')"` has one kind alone.
"""

from ml_collections import ConfigDict

from configs import train_griffin_tiny, train_tiny
from griffin_jax.config import ATTENTION

KINDS = ("recurrent", "lru", "gru", "mamba", "cg_lru")


def get_config(variant: str = "cg_lru") -> ConfigDict:
    """The settings; see griffin_jax.training.TrainConfig."""
    if variant == "tiny":
        config = train_tiny.get_config()
        config.model.block_pattern = (*KINDS, ATTENTION)
        config.model.num_layers = len(KINDS) + 1
        config.steps = 20
        return config
    if variant not in KINDS:
        raise ValueError(f"{variant!r} is no variant: there are tiny, {', '.join(KINDS)}")
    config = train_griffin_tiny.get_config()
    config.model.block_pattern = (variant, variant, ATTENTION)
    return config
