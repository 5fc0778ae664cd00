"""What of a mesh belongs to which process."""

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh

from griffin_jax.sharding.rules import BATCH
from griffin_jax.sharding.trees import MeshError, batch_shards


@dataclasses.dataclass(frozen=True)
class RowGroup:
    """The rows of a batch that this process reads.

    Processes whose devices hold the same rows (parts of the model or of time differ) are a group.

    Attributes:
      index: Of the group.
      count: Groups there are, each with as many rows.
      shards: Which of the equal parts of a batch (see `batch_shards`) the group's devices hold.
    """

    index: int
    count: int
    shards: tuple[int, ...]


def row_group(mesh: Mesh, process: int | None = None) -> RowGroup:
    """The group of a process, by default of this one.

    Raises:
      MeshError: the devices of some process hold part of the rows of another's.
    """
    sizes = dict(mesh.shape)
    by_shard = mesh.devices.reshape(np.prod([sizes[axis] for axis in BATCH]), -1)
    held: dict[int, list[int]] = {}
    for shard, devices in enumerate(by_shard):
        for owner in sorted({device.process_index for device in devices}):
            held.setdefault(owner, []).append(shard)
    groups = sorted({tuple(shards) for shards in held.values()})
    if sum(map(len, groups)) != batch_shards(mesh) or len({len(g) for g in groups}) != 1:
        raise MeshError(
            f"mesh data={sizes['data']} x fsdp={sizes['fsdp']} divides rows within a process: let "
            f"data x fsdp be a multiple or a divisor of the {len(held)} processes"
        )
    mine = tuple(held[jax.process_index() if process is None else process])
    return RowGroup(groups.index(mine), len(groups), mine)
