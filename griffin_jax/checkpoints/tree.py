"""The parameter tree as flat paths such as blocks_0/mlp_block/up_proj/weight."""

import functools
from collections.abc import Mapping, Set
from typing import Any

import flax.traverse_util
import jax

from griffin_jax.checkpoints.files import listed
from griffin_jax.config import GriffinConfig
from griffin_jax.errors import CheckpointError
from griffin_jax.models import abstract_params


@functools.lru_cache(maxsize=8)  # it traces the whole model
def flat_abstract_params(config: GriffinConfig) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Path and shape of every parameter of an unpacked model, in the model's order."""
    flat = flax.traverse_util.flatten_dict(abstract_params(config), sep="/")
    return {path: flat[path] for path in sorted(flat, key=model_order)}


def model_order(path: str) -> tuple[int, int, str]:
    """Sorts paths as the model runs: embedding, blocks by number, norm, head."""
    block = block_of(path)
    if block.startswith("blocks_"):
        return 1, int(block.removeprefix("blocks_")), path
    return {"embedder": 0, "final_norm": 2}.get(block, 3), 0, path


def block_of(path: str) -> str:
    """What a path belongs to: blocks_3, embedder, final_norm or lm_head."""
    return path.split("/", 1)[0]


def array_paths(path: str, leaf: Any) -> Any:
    """The leaf with the path of each array in its place.

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
