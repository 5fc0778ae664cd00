"""Meshes of the four axes."""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from griffin_jax.devices import AXES
from griffin_jax.fields import check_fields, field


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """The number of devices along each axis of a mesh; one of them may be -1, "all that remain".

    Attributes:
      data: Copies of the model, each with its rows of the batch.
      fsdp: As `data`, but parameters and optimizer state are cut, and gathered where they are used.
      model: Tensor parallelism: heads, recurrence width, MLP width and vocabulary are cut.
      sequence: A text is cut in time.
    """

    data: int = field(1, at_least=1, also=(-1,))
    fsdp: int = field(1, at_least=1, also=(-1,))
    model: int = field(1, at_least=1, also=(-1,))
    sequence: int = field(1, at_least=1, also=(-1,))

    def __post_init__(self):
        check_fields(self, "mesh.")
        if list(self.sizes().values()).count(-1) > 1:
            raise ValueError(f"only one axis of a mesh may be -1, got {self}")

    def sizes(self) -> dict[str, int]:
        return {axis: getattr(self, axis) for axis in AXES}

    def resolve(self, devices: int) -> "MeshShape":
        """Returns the shape with -1 worked out.

        Raises:
          ValueError: the sizes do not make up so many devices.
        """
        sizes = self.sizes()
        known = math.prod(size for size in sizes.values() if size != -1)
        rest = [axis for axis, size in sizes.items() if size == -1]
        if rest and devices % known == 0:
            sizes[rest[0]] = devices // known
        elif rest or known != devices:
            hint = f"{self} needs a multiple of {known}" if rest else f"{self} has {known}"
            more = known > devices
            raise ValueError(
                f"there are {devices} devices, mesh {hint}: "
                + ("ask for fewer" if more else "let an axis be -1, or multiply to their number")
            )
        return MeshShape(**sizes)

    def __str__(self) -> str:
        return " x ".join(f"{axis}={size}" for axis, size in self.sizes().items() if size != 1)


def mesh_unless_one(shape: MeshShape) -> Mesh | None:
    """Returns the mesh of a shape as configs have it; None where it is one device of one process.

    Raises:
      ValueError: the sizes do not make up the devices.
    """
    if shape == MeshShape() and jax.process_count() == 1:
        return None
    return make_mesh(**shape.sizes())


def make_mesh(
    data: int = 1,
    fsdp: int = 1,
    model: int = 1,
    sequence: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Returns a mesh of the axes "data", "fsdp", "model" and "sequence"; see `MeshShape`.

    Args:
      data: Size of the axis; -1 in one of the four takes all devices that remain.
      fsdp: As above.
      model: As above.
      sequence: As above.
      devices: All of JAX's by default, of every process.

    Raises:
      ValueError: the sizes do not make up the devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = MeshShape(data, fsdp, model, sequence).resolve(len(devices))
    sizes = tuple(shape.sizes().values())
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
