"""Checkpoints in and out: Hugging Face folders, published DeepMind trees and our own Orbax."""

from griffin_jax.checkpoints.checkpoint import (
    BUNDLED,
    WRITTEN,
    Checkpoint,
    find_folder,
    load_checkpoint,
    open_checkpoint,
    save_checkpoint,
    save_leaves,
)
from griffin_jax.checkpoints.packing import pack_leaf
from griffin_jax.errors import CheckpointError

__all__ = [
    "BUNDLED",
    "WRITTEN",
    "Checkpoint",
    "CheckpointError",
    "find_folder",
    "load_checkpoint",
    "open_checkpoint",
    "pack_leaf",
    "save_checkpoint",
    "save_leaves",
]
