"""The platform that a program is traced for, and the mesh that it runs under, if there is one.

A program runs under a mesh inside of `jax.set_mesh(mesh)`. Without a mesh the layouts that are asked
for here change nothing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

PLATFORMS = ("gpu", "tpu", "cpu")
DATA, FSDP, MODEL, SEQUENCE = "data", "fsdp", "model", "sequence"
AXES = (DATA, FSDP, MODEL, SEQUENCE)
BATCH = (DATA, FSDP)

Axes = tuple[Any, ...]

# What a dimension of an array is, and the mesh axes that it lies over.
LOGICAL_AXES = {
    "batch": BATCH,
    "copies": DATA,
    "time": SEQUENCE,
    "width": FSDP,
    "gate_inputs": FSDP,  # of one diagonal block
    "heads": MODEL,  # and diagonal blocks of gates
    "recurrence": MODEL,
    "features": MODEL,
    "vocabulary": MODEL,
    None: None,
}


def platform() -> str:
    """Returns what the program being traced is for: "gpu", "tpu" or "cpu".

    That is the platform of the mesh which `jax.set_mesh` set, be it of this machine or of one that
    is compiled for ahead of time, and without one the default backend.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return name if name in PLATFORMS else "gpu"  # which some call cuda or rocm


def current_mesh() -> AbstractMesh | None:
    """Returns the mesh that the compiler is to partition over here; None inside of `shard_map`,
    too.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names != AXES or mesh.size == 1:
        return None
    return mesh if set(mesh.axis_types) == {AxisType.Auto} else None


def partition_spec(axes: Axes) -> PartitionSpec:
    """Returns the spec as JAX writes it, without the tail of dimensions that are whole."""
    names = list(axes)
    while names and names[-1] is None:
        names.pop()
    return PartitionSpec(*names)


def mesh_axes(names: tuple[str | None, ...]) -> Axes:
    """Returns the mesh axes of an array whose dimensions have these names in `LOGICAL_AXES`."""
    return tuple(LOGICAL_AXES[name] for name in names)


def dividing_spec(mesh: Mesh | AbstractMesh, shape: tuple[int, ...], axes: Axes) -> PartitionSpec:
    """Returns the layout of an array over these mesh axes, without those that do not divide it.

    A dimension that an axis does not divide, such as a small batch or the one token of a decoding step
    over "sequence", is whole on each device of that axis.
    """

    def divided(size, names):
        if names is None:
            return None
        count = math.prod(mesh.shape[n] for n in (names if isinstance(names, tuple) else (names,)))
        return None if size % count else names

    return partition_spec(tuple(map(divided, shape, axes)))


def activation_spec(
    mesh: Mesh | AbstractMesh, shape: tuple[int, ...], names: tuple[str | None, ...]
) -> PartitionSpec:
    """Returns the layout of an activation whose dimensions have these names in `LOGICAL_AXES`; see
    `dividing_spec`.
    """
    return dividing_spec(mesh, shape, mesh_axes(names))


def time_shards(time: int) -> int:
    """Returns how many parts a sequence of this length is cut into here."""
    mesh = current_mesh()
    return 1 if mesh is None or time % mesh.shape[SEQUENCE] else mesh.shape[SEQUENCE]


def model_shards() -> int:
    """Returns how many parts heads and widths are cut into here."""
    mesh = current_mesh()
    return 1 if mesh is None else mesh.shape[MODEL]


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Returns `x` in the layout that `LOGICAL_AXES` gives dimensions of these names."""
    mesh = current_mesh()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(mesh, x.shape, names))


def replicate(tree: Any) -> Any:
    """Lays arrays whole on every device, as a host that reads them needs them."""
    if current_mesh() is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, jax.tree.map(lambda _: PartitionSpec(), tree))


def per_shard(
    function: Callable,
    arguments: Sequence[jax.Array],
    names: Sequence[tuple[str | None, ...]],
    results: Sequence[tuple[tuple[int, ...], tuple[str | None, ...]]],
) -> Any:
    """Calls function(*arguments) on every device of a mesh for its own part of them.

    The compiler cannot partition hand-written kernels, and scans over time only badly.

    Args:
      function: From arrays to an array, or to a tuple where there are several results. Under a mesh
        it sees parts, and may use collectives over "model" and "sequence".
      arguments: Whole arrays.
      names: For each argument, what its dimensions are; see `LOGICAL_AXES`.
      results: The shape of each whole result, and what its dimensions are.
    """
    mesh = current_mesh()
    if mesh is None:
        return function(*arguments)
    in_specs = tuple(
        activation_spec(mesh, argument.shape, dimensions)
        for argument, dimensions in zip(arguments, names, strict=True)
    )
    out_specs = tuple(activation_spec(mesh, *result) for result in results)
    mapped = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs if len(results) > 1 else out_specs[0],
        check_vma=False,
    )
    return mapped(*arguments)


def part_of(tree: Any, names: Any) -> Any:
    """Returns what one device has of a tree of arrays, as shapes; the tree itself without a mesh.

    Args:
      tree: Arrays.
      names: The same tree, with what the dimensions of each array are; see `LOGICAL_AXES`.
    """
    mesh = current_mesh()
    if mesh is None:
        return tree
    arrays, treedef = jax.tree.flatten(tree)

    def part(array, dimensions):
        sharding = NamedSharding(mesh, activation_spec(mesh, array.shape, dimensions))
        return jax.ShapeDtypeStruct(sharding.shard_shape(array.shape), array.dtype)

    return treedef.unflatten(map(part, arrays, named_leaves(names)))


def on_parts(function: Callable, trees: Sequence[Any], names: Sequence[Any], results: Any) -> Any:
    """Calls `per_shard` with a function of trees of arrays.

    Args:
      function: From trees to a tree.
      trees: Its arguments.
      names: For each argument the same tree, with what the dimensions of each array are.
      results: The tree of whole results, with a pair for each array: its shape, and what its dimensions
        are.
    """
    arrays, treedef = jax.tree.flatten(tuple(trees))
    pairs, result = jax.tree.flatten(results, is_leaf=_is_pair)

    def run(*arrays):
        leaves = list(result.flatten_up_to(function(*treedef.unflatten(arrays))))
        return tuple(leaves) if len(leaves) > 1 else leaves[0]

    found = per_shard(run, arrays, named_leaves(tuple(names)), pairs)
    return result.unflatten(found if len(pairs) > 1 else [found])


def named_leaves(names: Any) -> list[tuple[str | None, ...]]:
    """Returns the leaves of a tree that says what dimensions are."""
    return jax.tree.leaves(names, is_leaf=_are_names)


def _are_names(leaf):
    return isinstance(leaf, tuple) and all(name is None or isinstance(name, str) for name in leaf)


def _is_pair(leaf):
    return isinstance(leaf, tuple) and len(leaf) == 2 and _are_names(leaf[1])
