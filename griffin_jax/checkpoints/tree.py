"""The parameter tree as flat paths such as blocks_0/mlp_block/up_proj/weight."""

from collections.abc import Set
from typing import Any

import jax
import jax.numpy as jnp

from griffin_jax.checkpoints.files import listed
from griffin_jax.config import GriffinConfig
from griffin_jax.errors import CheckpointError
from griffin_jax.models import declarations


def flat_abstract_params(config: GriffinConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the path and shape of every parameter of an unpacked model, in the model's order."""
    return {
        path: jax.ShapeDtypeStruct(declaration.shape, jnp.float32)
        for path, declaration in declarations(config).items()
    }


def block_of(path: str) -> str:
    """Returns what a path belongs to: blocks_3, embedder, final_norm or lm_head."""
    return path.split("/", 1)[0]


def array_paths(path: str, leaf: Any) -> Any:
    """Returns the leaf with the path of each array in its place.

    That is the leaf's own path, or for a packed weight one for each field.
    """

    def extend(key, _):
        return "/".join(filter(None, (path, jax.tree_util.keystr(key, simple=True, separator="/"))))

    return jax.tree_util.tree_map_with_path(extend, leaf)


def check_paths(config: GriffinConfig, paths: Set[str]) -> None:
    """Raises CheckpointError when leaves to be saved are not those of the config."""
    wanted = flat_abstract_params(config).keys()
    for problem, names in (("missing", wanted - paths), ("unexpected", paths - wanted)):
        if names:
            raise CheckpointError(
                f"parameters do not fit the config: {listed(sorted(names))} {problem}"
            )


def check_shape(what: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises CheckpointError when a tensor's shape is not what the config says."""
    if tuple(shape) != tuple(expected):
        raise CheckpointError(f"{what} has shape {tuple(shape)}, the config says {tuple(expected)}")
