"""Whether a program can have kernels through Mosaic GPU for Hopper's tensor cores."""

import functools
import importlib.util
import re

import jax

CAPABILITY = "9.0"
_BACKEND = "jax.experimental.pallas.mosaic_gpu"
_HOPPER = re.compile(r"\b(GH200|H(100|200|800|20))\b")


def missing() -> str | None:
    """Returns why no kernel of this backend serves what is being traced; None where they do."""
    if not _is_there():
        return "this JAX has no Mosaic GPU backend of Pallas"
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:  # of a mesh, be it of this machine or described
        kind = device.device_kind
        return None if _HOPPER.search(kind) else f"it needs a Hopper GPU, and this is {kind}"
    found = jax.local_devices()[0]
    capability = getattr(found, "compute_capability", None)
    if capability == CAPABILITY:
        return None
    return f"it needs a Hopper GPU, and this is {found.device_kind}"


@functools.cache
def _is_there():
    return importlib.util.find_spec(_BACKEND) is not None
