"""Models on many devices: the mesh, the table of what lies where, and the shardings it gives."""

from griffin_jax.devices import AXES
from griffin_jax.sharding.mesh import MeshShape, make_mesh, mesh_unless_one
from griffin_jax.sharding.mesh_function import a_leaf, jit_on_mesh, mesh_of, mesh_of_all
from griffin_jax.sharding.processes import RowGroup, is_first, row_group, to_host, wait_for_all
from griffin_jax.sharding.trees import (
    MeshError,
    batch_sharding,
    batch_shards,
    check_batch,
    check_config,
    tree_shardings,
)

__all__ = [
    "AXES",
    "MeshError",
    "MeshShape",
    "RowGroup",
    "a_leaf",
    "batch_sharding",
    "batch_shards",
    "check_batch",
    "check_config",
    "is_first",
    "jit_on_mesh",
    "make_mesh",
    "mesh_of",
    "mesh_of_all",
    "mesh_unless_one",
    "row_group",
    "to_host",
    "tree_shardings",
    "wait_for_all",
]
