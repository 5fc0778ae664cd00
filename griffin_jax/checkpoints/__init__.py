"""Checkpoints in and out: Hugging Face folders, published DeepMind trees and our own Orbax."""

from griffin_jax.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    open_checkpoint,
    save_checkpoint,
    save_leaves,
)
from griffin_jax.checkpoints.errors import CheckpointError

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "load_checkpoint",
    "open_checkpoint",
    "save_checkpoint",
    "save_leaves",
]
