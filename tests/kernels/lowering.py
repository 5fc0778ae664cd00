"""Kernels through Triton, lowered where there is no GPU."""

import warnings

import jax

# jax 0.12 asks what the GPU is while it lowers, and would ask the machine.
_GPU = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
_MESH = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=_GPU)


def for_gpu(function, *arguments) -> str:
    """The text of a jitted function lowered for CUDA."""
    with warnings.catch_warnings(), jax.sharding.use_abstract_mesh(_MESH):
        # The kernels that stand on the backend are listed in dev/jax_releases.md.
        warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
        lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    return lowered.as_text()
