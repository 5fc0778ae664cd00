"""What every parameter of a model is: the declarations of its layers, found by path."""

import functools
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jax.typing import DTypeLike

from griffin_jax.config import GriffinConfig
from griffin_jax.models.blocks import BLOCKS, check_blocks
from griffin_jax.models.griffin import Griffin
from griffin_jax.models.lora_weight import LOW_RANK, low_rank_axes
from griffin_jax.models.parameters import Declaration, Kind, declared
from griffin_jax.sharding import tree_shardings
from griffin_jax.weight import axes_of, behind, is_weight

_NUMBER = re.compile(r"^(?:groups/)?blocks_\d+/")


@functools.lru_cache(maxsize=16)  # it traces the whole model
def declarations(config: GriffinConfig) -> Mapping[str, Declaration]:
    """Returns what every parameter of a model is, by path ("blocks_0/mlp_block/up_proj/weight").

    Paths are in the model's order. Nothing here is changed: the mapping is shared.

    Raises:
      ValueError: a block is of no known kind, or the sizes do not suit it.
    """
    check_blocks(config)

    def init():
        return Griffin(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))

    return MappingProxyType(declared(jax.eval_shape(init)))


def abstract_params(config: GriffinConfig, dtype: DTypeLike = jnp.float32) -> dict:
    """Returns the tree of `init_params` as `jax.ShapeDtypeStruct`, without making any array."""
    return flax.traverse_util.unflatten_dict(
        {
            path: jax.ShapeDtypeStruct(declaration.shape, jnp.dtype(dtype))
            for path, declaration in declarations(config).items()
        },
        sep="/",
    )


def declaration_at(config: GriffinConfig, path: Sequence[str]) -> Declaration:
    """Returns what the parameter at a path is, be the layer stacked or not.

    Raises:
      ValueError: the model has no such parameter.
    """
    name = "/".join(path)
    if name not in declarations(config):
        raise ValueError(f"the model has no parameter {name}")
    return declarations(config)[name]


def param_axes(config: GriffinConfig, tree: Any) -> Any:
    """Returns what the dimensions of each array are in a tree that holds parameters of a model.

    Args:
      config: The model's shape.
      tree: Parameters, stacked or not, packed or not; adapters; or the state of an optimizer of
        either, with parameters wherever in it. Arrays may be abstract.

    Returns:
      The tree with a tuple of names of `devices.LOGICAL_AXES` in the place of each array; None of
      all dimensions of what belongs to no parameter.

    Raises:
      ValueError: the model has no such parameter.
    """

    def axes(path, leaf):
        names = [getattr(entry, "key", getattr(entry, "name", None)) for entry in path]
        begin = max((i for i, name in enumerate(names) if _is_part(name)), default=None)
        if begin is None:
            return behind((), leaf.ndim)
        *layer, name = names[begin:]
        if name in LOW_RANK:
            weight = declaration_at(config, [*layer, "weight"])
            return behind(low_rank_axes(weight.axes)[LOW_RANK.index(name)], leaf.ndim)
        return axes_of(leaf, declaration_at(config, [*layer, name]).axes)

    return jax.tree_util.tree_map_with_path(axes, tree, is_leaf=is_weight)


def param_shardings(config: GriffinConfig, tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Returns where the arrays lie of a tree that holds parameters; see `param_axes` and
    `tree_shardings`.

    Raises:
      MeshError: the mesh does not divide a dimension.
    """
    return tree_shardings(tree, mesh, param_axes(config, tree))


def leaf_shardings(config: GriffinConfig, mesh: Mesh, path: str, leaf: Any) -> Any:
    """Returns where the arrays of one parameter lie, by its path; see `param_shardings`."""
    axes = axes_of(leaf, declarations(config)[path].axes)
    return tree_shardings({path: leaf}, mesh, {path: axes})[path]  # errors name the path


def put_on_mesh(config: GriffinConfig, params: Any, mesh: Mesh) -> Any:
    """Returns the parameters where they belong on a mesh; see `param_shardings`."""
    return jax.device_put(params, param_shardings(config, params, mesh))


def kind_at(path: str) -> Kind:
    """Returns what follows for the parameter at a path of any model, be its layer stacked or not.

    Raises:
      ValueError: neither `Griffin` nor a block of `BLOCKS` has such a parameter.
    """
    kinds = _kinds(tuple(BLOCKS.items()))
    name = _NUMBER.sub("", path)
    if name not in kinds:
        raise ValueError(f"no layer of any model has a parameter {path}")
    return kinds[name]


def adapted_layers() -> tuple[str, ...]:
    """Returns the names of the linear layers that adapters add to, of all kinds of blocks."""
    kinds = _kinds(tuple(BLOCKS.items()))
    return tuple(dict.fromkeys(path.split("/")[-2] for path in kinds if kinds[path].adapts))


@functools.lru_cache(maxsize=4)
def _kinds(blocks):
    """Returns by path without the layer's number, from a small model that has a layer of each kind."""
    pattern = tuple(kind for kind, _ in blocks)
    config = GriffinConfig(
        vocab_size=16,
        width=64,
        mlp_width=64,
        num_layers=len(pattern),
        num_heads=4,
        block_pattern=pattern,
        tie_embeddings=False,
        attention_bias=True,
    )
    return {
        _NUMBER.sub("", path): declaration.follows
        for path, declaration in declarations(config).items()
    }


def _is_part(name):
    """Returns whether a name on the way to a parameter is one that `Griffin` gives its parts."""
    parts = ("embedder", "final_norm", "lm_head")
    return name in parts or (isinstance(name, str) and name.startswith("blocks_"))
