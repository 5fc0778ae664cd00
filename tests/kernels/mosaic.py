"""Mosaic GPU kernels where there is no GPU: interpreted with race detection, compiled for an H200."""

import contextlib
import importlib.util
import itertools
import os
import re
import subprocess
import sys

import jax
import pytest

from griffin_jax.kernels.mosaic_gpu import backend

ON_HOPPER = backend.missing() is None

# What the compiler asks of a GPU that it compiles for.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98
  device_memory_size: 150000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H200"
"""


def interpreter():
    """What a kernel's `interpret` is in tests: nothing on a Hopper GPU, where it runs."""
    if ON_HOPPER:
        return False
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams(detect_races=True)


@contextlib.contextmanager
def no_races():
    """Fails where the interpreter has found a race inside of the block.

    JAX 0.12 raises by itself, earlier ones keep what they found.
    """
    yield
    if not ON_HOPPER:
        from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

        jax.effects_barrier()
        assert not gpu_callbacks.get_races().races_found


def compiled_for_h200(source: str) -> list[dict]:
    """Runs `source` in a process that compiles for an H200, and reads the assembler's reports.

    Args:
      source: Python that calls `build(function, *shapes)`, which is there, for functions of arrays.

    Returns:
      For each kernel its registers, bytes of spills, and whether products wait for one another.
    """
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        pytest.skip("jax-cuda13-plugin, which compiles for a described GPU, is not installed")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "MOSAIC_GPU_DUMP_PTXAS": "1",
    }
    program = _BUILD.replace("TARGET", repr(H200)) + source
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    report = done.stdout + done.stderr
    assert done.returncode == 0, report[-3000:]
    kernels = report.split("Compiling entry function")
    return [
        {
            "registers": int(re.search(r"Used (\d+) registers", text)[1]),
            "spills": sum(map(int, re.findall(r"(\d+) bytes spill", text))),
            # C7519 says that the compiler has ordered registers before a product, which costs nothing.
            "serialized": bool(re.search("C75(?!19)", before.rsplit("Compile time", 1)[-1])),
        }
        for before, text in itertools.pairwise(kernels)
    ]


_BUILD = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

topology = topologies.get_topology_desc("", platform="cuda", target_config=TARGET, topology="1x1x1")
sharding = SingleDeviceSharding(topology.devices[0])

def build(function, *arguments):
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    jax.jit(function).trace(*jax.tree.map(like, arguments)).lower().compile()

"""
