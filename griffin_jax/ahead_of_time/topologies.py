"""TPU v5e slices as libtpu describes them, on a machine without any."""

import importlib.util
import math
import os
from collections.abc import Sequence

import jax

SLICES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
NAMES = tuple(f"v5e:{slice}" for slice in SLICES)

# What libtpu would ask a TPU host for.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def check_name(name: str) -> None:
    """Raises ValueError when there is no such topology."""
    if name not in NAMES:
        raise ValueError(f"no topology {name!r}; there are {', '.join(NAMES)}")


def num_chips(name: str) -> int:
    """Returns the chips of a topology, each of which is one JAX device.

    Raises:
      ValueError: there is no such topology.
    """
    check_name(name)
    return math.prod(map(int, name.removeprefix("v5e:").split("x")))


def devices(name: str) -> Sequence[jax.Device]:
    """Returns devices that programs can be compiled for, and run on nowhere.

    Raises:
      ValueError: there is no such topology.
      ImportError: libtpu is not installed.
    """
    from jax.experimental import topologies

    check_name(name)
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            "compiling for TPUs needs libtpu, which is not installed: "
            'pip install "griffin_jax[tpu]" (Linux on x86-64)'
        )
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options = {"chips_per_host_bounds": [1, 1, 1]} if num_chips(name) == 1 else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
