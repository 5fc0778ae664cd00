"""Shardings of whole trees, and whether a mesh divides them."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from griffin_jax.config import GriffinConfig
from griffin_jax.devices import AXES, BATCH, MODEL, SEQUENCE, Axes, fit, partition_spec
from griffin_jax.quantization.tensor import QuantizedTensor
from griffin_jax.sharding import rules
from griffin_jax.sharding.layouts import tree_path


class MeshError(ValueError):
    """A mesh does not fit a model or a batch; the message says which would."""


def tree_axes(tree: Any) -> Any:
    """The tree with the mesh axes of each array in its place; see `rules.axes_of`.

    Args:
      tree: Parameters, optimizer state, adapters or decoding state, concrete or abstract.
    """

    def axes(path, leaf):
        name = tree_path(path)
        if isinstance(leaf, QuantizedTensor):
            return _packed_axes(name, leaf)
        return rules.axes_of(name, leaf.ndim)

    return jax.tree_util.tree_map_with_path(axes, tree, is_leaf=_is_packed)


def _is_packed(leaf):
    return isinstance(leaf, QuantizedTensor)


def _packed_axes(path: str, tensor: QuantizedTensor) -> QuantizedTensor:
    flat = tensor.shape[-1] % tensor.block_size != 0

    def axes(key, leaf):
        # A weight whose rows end within blocks is one run of bytes, which has no rows to cut.
        return (None,) * leaf.ndim if flat else rules.axes_of(f"{path}/{tree_path(key)}", leaf.ndim)

    return jax.tree_util.tree_map_with_path(axes, tensor)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """The tree with a `NamedSharding` in the place of each array.

    Raises:
      MeshError: the mesh does not divide a dimension.
    """
    check_divides(tree, mesh)
    axes = tree_axes(tree)
    return jax.tree.map(lambda _, axes: NamedSharding(mesh, partition_spec(axes)), tree, axes)


def batch_sharding(mesh: Mesh, shape: tuple[int, ...] | None = None) -> NamedSharding:
    """Where tokens [B, T] lie: rows over "data" and "fsdp", time over "sequence".

    Args:
      mesh: Of the four axes.
      shape: Leaves out the axes that do not divide it, such as "sequence" for one token.
    """
    axes = (BATCH, SEQUENCE)
    return NamedSharding(mesh, partition_spec(axes) if shape is None else fit(mesh, shape, axes))


def array_sharding(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """Where one array of a parameter tree lies, by its path; see `rules.axes_of`.

    Raises:
      MeshError: the mesh does not divide a dimension.
    """
    axes = rules.axes_of(path, len(shape))
    _check_divides([(path, shape, axes)], mesh)
    return NamedSharding(mesh, partition_spec(axes))


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """How many parts a batch is cut into."""
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


def check_divides(tree: Any, mesh: Mesh | AbstractMesh) -> None:
    """Raises MeshError when a mesh does not divide the arrays of a tree.

    The message names the array and the sizes of the axis that divide all that lies over it. The
    input width of a 4-bit weight divides at borders of blocks only.
    """
    _check_divides(_arrays(tree), mesh)


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


def _arrays(tree: Any) -> Iterator[tuple[str, tuple[int, ...], Axes]]:
    axes = tree_axes(tree)
    shapes = jax.tree_util.tree_leaves_with_path(tree)
    flat_axes = jax.tree.structure(tree).flatten_up_to(axes)
    for (path, leaf), leaf_axes in zip(shapes, flat_axes, strict=True):
        yield tree_path(path), tuple(leaf.shape), leaf_axes


def _divisors(number: int) -> str:
    found = [n for n in range(1, min(number, 1024) + 1) if number % n == 0]
    return ", ".join(map(str, found[:12])) + (", ..." if len(found) > 12 else "")
