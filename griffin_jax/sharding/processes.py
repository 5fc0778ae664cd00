"""The roles of several processes, and the part of a mesh that belongs to each."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from griffin_jax.devices import BATCH
from griffin_jax.sharding.trees import MeshError, batch_shards


def is_first() -> bool:
    """Returns whether this process is the one that prints, and writes what all have."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Waits until every process has come to this point; `what` names it in errors."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def to_host(tree: Any) -> Any:
    """Returns a tree of whole host arrays; every process must call this, as each has only its
    part.
    """
    return jax.tree.map(_to_host, tree)


def _to_host(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        assert isinstance(x.sharding, NamedSharding)  # the only kind that spans processes here
        x = _gather(x.sharding.mesh)(x)
    # A device array keeps its host copy for as long as it lives; this one does not live long.
    return np.asarray(jax.numpy.copy(x))


@functools.lru_cache(maxsize=8)
def _gather(mesh):
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


@dataclasses.dataclass(frozen=True)
class RowGroup:
    """The rows of a batch that this process reads.

    Processes whose devices hold the same rows (parts of the model or of time differ) are a group.

    Attributes:
      index: The number of the group.
      count: Groups there are, each with as many rows.
      shards: Which of the equal parts of a batch (see `batch_shards`) the group's devices hold.
    """

    index: int
    count: int
    shards: tuple[int, ...]

    def places(self, batch_size: int) -> np.ndarray:
        """Returns the rows of a batch of so many that the group's devices hold, ascending.

        Raises:
          MeshError: the batch does not divide over the groups and their parts.
        """
        parts = self.count * len(self.shards)
        if batch_size % parts:
            raise MeshError(
                f"a batch of {batch_size} does not divide over {parts} parts; the next that does "
                f"is {-(-batch_size // parts) * parts}"
            )
        size = batch_size // parts
        return np.concatenate([np.arange(s * size, (s + 1) * size) for s in self.shards])


def row_group(mesh: Mesh, process: int | None = None) -> RowGroup:
    """Returns the group of a process, by default of this one.

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
