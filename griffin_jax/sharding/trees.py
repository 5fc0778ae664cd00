"""Shardings of whole trees, and whether a mesh divides them."""

import math
from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from griffin_jax.config import GriffinConfig
from griffin_jax.devices import (
    AXES,
    BATCH,
    MODEL,
    SEQUENCE,
    Axes,
    dividing_spec,
    mesh_axes,
    partition_spec,
)


class MeshError(ValueError):
    """A mesh does not fit a model or a batch; the message says which would."""


def tree_shardings(tree: Any, mesh: Mesh | AbstractMesh, axes: Any = None) -> Any:
    """Returns the tree with a `NamedSharding` in the place of each array.

    Args:
      tree: Arrays, concrete or abstract.
      mesh: A mesh of the four axes.
      axes: What each array's dimensions are, a tuple of names of `LOGICAL_AXES` in its place; of
        parameters, `models.param_axes`. By default what the tree itself says, as a state does.

    Raises:
      MeshError: the mesh does not divide a dimension; the message names the array and the sizes of
        the axis that divide all that lies over it. The input width of a packed weight divides at
        borders of blocks only.
    """
    structure = jax.tree.structure(tree)
    axes = tree.axes() if axes is None else axes
    found = [mesh_axes(names) for names in structure.flatten_up_to(axes)]
    arrays = jax.tree_util.tree_leaves_with_path(tree)
    _check_divides(
        [
            (tree_path(path), tuple(leaf.shape), names)
            for (path, leaf), names in zip(arrays, found, strict=True)
        ],
        mesh,
    )
    return structure.unflatten(NamedSharding(mesh, partition_spec(names)) for names in found)


def batch_sharding(mesh: Mesh, shape: tuple[int, ...] | None = None) -> NamedSharding:
    """Returns where tokens [B, T] lie: rows over "data" and "fsdp", time over "sequence".

    Args:
      mesh: A mesh of the four axes.
      shape: Leaves out the axes that do not divide it, such as "sequence" for one token.
    """
    axes = (BATCH, SEQUENCE)
    return NamedSharding(
        mesh, partition_spec(axes) if shape is None else dividing_spec(mesh, shape, axes)
    )


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Returns how many parts a batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def check_batch(batch_size: int, mesh: Mesh | AbstractMesh) -> None:
    """Raises MeshError when a batch does not divide over a mesh."""
    shards = batch_shards(mesh)
    if batch_size % shards:
        raise MeshError(
            f"a batch of {batch_size} does not divide over mesh data={mesh.shape['data']} x "
            f"fsdp={mesh.shape['fsdp']}; the next that does is {-(-batch_size // shards) * shards}"
        )


def check_config(config: GriffinConfig, mesh: Mesh | AbstractMesh) -> None:
    """Raises MeshError when heads do not divide over `model`."""
    size = mesh.shape[MODEL]
    if config.num_heads % size:
        raise MeshError(
            f"mesh axis model={size} does not divide num_heads {config.num_heads}; it may be "
            f"{_divisors(config.num_heads)}"
        )


def _check_divides(arrays: Iterable[tuple[str, tuple[int, ...], Axes]], mesh) -> None:
    common = dict.fromkeys(AXES, 0)
    odd = {}
    for path, shape, axes in arrays:
        for dimension, names in enumerate(axes):
            for axis in names if isinstance(names, tuple) else (names,):
                if axis is None:
                    continue
                common[axis] = math.gcd(common[axis], shape[dimension])
                if shape[dimension] % mesh.shape[axis]:
                    odd.setdefault(axis, f"dimension {dimension} of {path} {list(shape)}")
    for axis, where in odd.items():
        raise MeshError(
            f"mesh axis {axis}={mesh.shape[axis]} does not divide {where}; "
            f"it may be {_divisors(common[axis])}"
        )


def tree_path(path: tuple[jax.tree_util.KeyEntry, ...]) -> str:
    """Returns the names on the way to a leaf, joined by slashes; places in sequences are left
    out.
    """
    names = (getattr(entry, "key", getattr(entry, "name", None)) for entry in path)
    return "/".join(name for name in names if isinstance(name, str))


def _divisors(number: int) -> str:
    found = [n for n in range(1, min(number, 1024) + 1) if number % n == 0]
    return ", ".join(map(str, found[:12])) + (", ..." if len(found) > 12 else "")
