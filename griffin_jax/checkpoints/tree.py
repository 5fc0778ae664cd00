"""The parameter tree as flat paths such as blocks_0/mlp_block/up_proj/weight."""

import functools
from collections.abc import Mapping

import flax.traverse_util
import jax

from griffin_jax.checkpoints.errors import CheckpointError
from griffin_jax.config import GriffinConfig
from griffin_jax.models import abstract_params

_TOP = ("embedder", "blocks", "final_norm", "lm_head")


@functools.lru_cache(maxsize=8)  # it traces the whole model
def flat_abstract_params(config: GriffinConfig) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Path and shape of every parameter of an unpacked model."""
    return flax.traverse_util.flatten_dict(abstract_params(config), sep="/")


def model_order(path: str) -> tuple[int, int, str]:
    """Sorts paths as the model runs: embedding, blocks by number, norm, head."""
    top, _, number = path.split("/", 1)[0].partition("_")
    if top == "blocks":
        return _TOP.index(top), int(number), path
    return _TOP.index(path.split("/", 1)[0]), 0, path


def check_shape(what: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises CheckpointError when a tensor's shape is not what the config says."""
    if tuple(shape) != tuple(expected):
        raise CheckpointError(f"{what} has shape {tuple(shape)}, the config says {tuple(expected)}")
