"""Models on many devices: the mesh, the table of what lies where, and the shardings it gives."""

from griffin_jax.sharding.mesh import MeshShape, make_mesh
from griffin_jax.sharding.per_shard import jit_on_mesh, mesh_of, on_mesh_of
from griffin_jax.sharding.processes import RowGroup, is_first, row_group, to_host, wait_for_all
from griffin_jax.sharding.rules import AXES, RULES
from griffin_jax.sharding.trees import (
    MeshError,
    array_sharding,
    batch_sharding,
    batch_shards,
    check_batch,
    check_config,
    check_divides,
    param_shardings,
    state_shardings,
    tree_shardings,
)

__all__ = [
    "AXES",
    "RULES",
    "MeshError",
    "MeshShape",
    "RowGroup",
    "array_sharding",
    "batch_sharding",
    "batch_shards",
    "check_batch",
    "check_config",
    "check_divides",
    "is_first",
    "jit_on_mesh",
    "make_mesh",
    "mesh_of",
    "on_mesh_of",
    "param_shardings",
    "row_group",
    "state_shardings",
    "to_host",
    "tree_shardings",
    "wait_for_all",
]
