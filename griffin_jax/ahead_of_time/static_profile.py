"""An estimate of a program's time from the compiler's own schedule.

libtpu can write, for each instruction that it compiles, the cycles that its schedule takes. That
ignores the bandwidth of the main memory, counts nothing where it does not model, and ends the
process where it meets a copy that it does not know. So it is asked in a process of its own, what it
wrote until then is used, and the products with packed weights are asked about in another one, alone.
An instruction then takes the larger of its cycles and its bytes over the bandwidth; one without
cycles takes those of another of the same form, or its bytes alone.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from griffin_jax.ahead_of_time import programs, topologies
from griffin_jax.ahead_of_time.hlo import Module
from griffin_jax.ahead_of_time.programs import Program
from griffin_jax.ahead_of_time.roofline import V5E
from griffin_jax.kernels.int8_matmul_pallas_tpu import int8_matmul
from griffin_jax.kernels.packed_matmul_pallas_tpu import packed_matmul, to_device_layout
from griffin_jax.quantization import int8
from griffin_jax.quantization.tensor import abstract
from griffin_jax.sharding import MeshShape, make_mesh

# 197 TFLOP/s of four units of 128 x 128 multiply-adds a cycle.
CYCLES_PER_SECOND = V5E.flops_per_second / (4 * 128 * 128 * 2)

# By the names of the kernels of products: how one is called, the weight [out, in] that it takes, as
# abstract arrays, and the same as it lies in memory.
PRODUCTS: dict[str, tuple[Callable, Callable, Callable]] = {
    "packed_matmul": (packed_matmul, lambda shape: abstract(shape, jnp.bfloat16), to_device_layout),
    "int8_matmul": (int8_matmul, int8.abstract, lambda weight: weight),
}

_SHAPE = re.compile(r"(\w+)\[([\d,]+)\]")
_ESTIMATE = re.compile(r'hlo_op_name: "([^"]+)"\s+estimated_cycles: (\d+)')


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The time of one call; for a decoding program, of one step.

    Attributes:
      seconds: The sum over instructions of the larger of cycles and bytes.
      kernel_seconds: The part of it in the products with packed weights.
      memory_seconds: Bytes of all instructions over the bandwidth.
      covered: Share of `seconds` in instructions whose cycles are known, not their bytes alone.
    """

    seconds: float
    kernel_seconds: float
    memory_seconds: float
    covered: float


def estimate(topology: str, program: Program, module: Module) -> Estimate:
    """Returns the time of a compiled program, on one chip of its mesh; takes two more compilations.

    Args:
      topology: What it was compiled for.
      program: What was compiled.
      module: What came of it.
    """
    products = {_product(x) for x, _, _ in module.executed() if _is_product(x)}
    cycles, _ = _profile({"topology": topology, "program": dataclasses.asdict(program)})
    forms = {}
    if products:
        alone, text = _profile({"products": sorted(products)})
        forms = _forms(Module(text), alone)
    return summed(module, cycles, _forms(module, cycles) | forms)


def _forms(module, cycles):
    return {
        _form(instruction, scope): cycles[instruction.name]
        for instruction, scope, _ in module.executed()
        if instruction.name in cycles
    }


def summed(module: Module, cycles: dict[str, int], forms: dict[tuple, int]) -> Estimate:
    """Returns the time of a program, given cycles of instructions by name or else by form."""
    total = kernels = memory = covered = 0.0
    for instruction, scope, times in module.executed():
        found = cycles.get(instruction.name, forms.get(_form(instruction, scope), 0))
        traffic = module.memory_traffic(instruction, scope) / V5E.bytes_per_second
        seconds = times * max(found / CYCLES_PER_SECOND, traffic)
        total += seconds
        memory += times * traffic
        kernels += seconds if _is_product(instruction) else 0
        covered += seconds if found else 0
    return Estimate(total, kernels, memory, covered / total if total else 0.0)


def _is_product(instruction):
    return instruction.opcode == "custom-call" and _kernel(instruction) in PRODUCTS


def _kernel(instruction):
    return instruction.name.split(".")[0]


def _product(instruction):
    """Returns the kernel, rows, inputs and outputs of a product with a packed weight."""
    constraints = re.search(r"operand_layout_constraints=\{.*?\}\}", instruction.attributes)
    arrays = _SHAPE.findall(constraints.group(0))
    rows, inputs = next(shape.split(",") for dtype, shape in arrays if dtype == "bf16")
    _, outputs = _SHAPE.search(instruction.type).group(2).split(",")
    return _kernel(instruction), int(rows), int(inputs), int(outputs)


def _form(instruction, scope):
    if _is_product(instruction):
        return _product(instruction)
    operands = (scope[name].type for name in instruction.operands if name in scope)
    # In whichever memory they are.
    types = [re.sub(r"\{[^}]*\}", "", type) for type in (instruction.type, *operands)]
    return instruction.name.split(".")[0], tuple(types)


def _profile(what: dict[str, Any]) -> tuple[dict[str, int], str]:
    """Returns the cycles of instructions by name, as far as libtpu estimates them, and the program's
    text.
    """
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in ("dump", "profile"):
            (folder / name).mkdir()
        environment = os.environ | {
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder}/dump --xla_jf_dump_llo_text=false "
            f"--xla_jf_dump_static_llo_profile_to={folder}/profile",
            "JAX_PLATFORMS": "cpu",
        }
        subprocess.run(
            [sys.executable, "-m", __name__, json.dumps(what), str(folder / "text")],
            env=environment,
            cwd=Path(__file__).parents[2],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,  # it may well abort
        )
        profiles = [path.read_text() for path in (folder / "profile").glob("*.textproto")]
        text = folder / "text"
        return (
            {name: int(cycles) for part in profiles for name, cycles in _ESTIMATE.findall(part)},
            text.read_text() if text.is_file() else "",
        )


def _main(what, text):
    jax.config.update("jax_enable_compilation_cache", False)
    what = json.loads(what)
    if "products" in what:
        compiled = _lower_products(what["products"]).compile()
    else:
        values = what["program"]
        shape = MeshShape(**values.pop("mesh"))
        mesh = make_mesh(**shape.sizes(), devices=topologies.devices(what["topology"]))
        compiled = programs.lower(Program(**values, mesh=shape), mesh).compile()
    Path(text).write_text(compiled.as_text())


def _lower_products(products):
    """Returns one program with products by these kernels, of these sizes, on one chip."""
    mesh = make_mesh(devices=topologies.devices("v5e:1x1"))
    whole = NamedSharding(mesh, PartitionSpec())

    def struct(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)

    arguments, kernels = [], []
    for name, rows, inputs, outputs in products:
        kernel, make, lay_out = PRODUCTS[name]
        x = jax.ShapeDtypeStruct((rows, inputs), jnp.bfloat16, sharding=whole)
        weight = jax.tree.map(struct, make((outputs, inputs)))
        arguments.append((x, lay_out(weight)))
        kernels.append(kernel)

    def run(*pairs):
        return [kernel(*pair) for kernel, pair in zip(kernels, pairs, strict=True)]

    with jax.set_mesh(mesh):
        return jax.jit(run).lower(*arguments)


if __name__ == "__main__":
    _main(*sys.argv[1:])
