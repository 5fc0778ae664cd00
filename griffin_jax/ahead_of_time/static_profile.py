"""An estimate of a program's time from the compiler's own schedule.

libtpu can write, for each instruction that it compiles, the cycles that its schedule takes. That
ignores the bandwidth of the main memory, counts nothing where it does not model, and ends the
process where it meets a copy that it does not know, so it is asked in a process of its own, and
what it wrote until then is used. An instruction then takes the larger of its cycles and its bytes
over the bandwidth; one without cycles takes those of another of the same form, or its bytes alone.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from griffin_jax.ahead_of_time.hlo import Module
from griffin_jax.ahead_of_time.programs import Program
from griffin_jax.ahead_of_time.roofline import V5E
from griffin_jax.sharding import MeshShape

# 197 TFLOP/s of four units of 128 x 128 multiply-adds a cycle.
CYCLES_PER_SECOND = V5E.flops_per_second / (4 * 128 * 128 * 2)

_ESTIMATE = re.compile(r'hlo_op_name: "([^"]+)"\s+estimated_cycles: (\d+)')


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one call; of a decoding program, of one step.

    Attributes:
      seconds: The sum over instructions of the larger of cycles and bytes.
      kernel_seconds: The part of it in the products with 4-bit weights.
      memory_seconds: Bytes of all instructions over the bandwidth.
      covered: Share of `seconds` in instructions whose cycles are known, not their bytes alone.
    """

    seconds: float
    kernel_seconds: float
    memory_seconds: float
    covered: float


def estimate(module: Module, cycles: dict[str, int]) -> Estimate:
    """The time of a compiled program, given the cycles of its instructions by name."""
    forms = {}
    for instruction, scope, _ in module.executed():
        if instruction.name in cycles:
            forms[_form(instruction, scope)] = cycles[instruction.name]
    total = kernels = memory = covered = 0.0
    for instruction, scope, times in module.executed():
        found = cycles.get(instruction.name, forms.get(_form(instruction, scope), 0))
        traffic = module.memory_traffic(instruction, scope) / V5E.bytes_per_second
        seconds = times * max(found / CYCLES_PER_SECOND, traffic)
        total += seconds
        memory += times * traffic
        kernels += seconds if instruction.name.startswith("packed_matmul") else 0
        covered += seconds if found else 0
    return Estimate(total, kernels, memory, covered / total if total else 0.0)


def _form(instruction, scope):
    operands = (scope[name].type for name in instruction.operands if name in scope)
    types = [instruction.type, *operands]
    # In whichever memory they are, and however many layers are in a stack.
    types = [re.sub(r"\{[^}]*\}", "", type) for type in types]
    if instruction.opcode == "custom-call":
        types = [re.sub(r"\[\d+,(\d+,\d+)\]", r"[\1]", type) for type in types]
    return instruction.name.split(".")[0], tuple(types)


def profile(topology: str, program: Program) -> dict[str, int]:
    """Cycles of instructions by name, as far as libtpu estimates them; takes a compilation."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder}/dump --xla_jf_dump_llo_text=false "
            f"--xla_jf_dump_static_llo_profile_to={folder}/profile",
            "JAX_PLATFORMS": "cpu",
        }
        for name in ("dump", "profile"):
            (Path(folder) / name).mkdir()
        description = json.dumps(dataclasses.asdict(program))
        subprocess.run(
            [sys.executable, "-m", __name__, topology, description],
            env=environment,
            cwd=Path(__file__).parents[2],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,  # it may well abort
        )
        texts = (path.read_text() for path in (Path(folder) / "profile").glob("*.textproto"))
        return {name: int(cycles) for text in texts for name, cycles in _ESTIMATE.findall(text)}


def _main(topology, description):
    from griffin_jax.ahead_of_time import programs, topologies
    from griffin_jax.sharding import make_mesh

    values = json.loads(description)
    shape = MeshShape(**values.pop("mesh"))
    program = Program(**values, mesh=shape)
    mesh = make_mesh(**shape.sizes(), devices=topologies.devices(topology))
    programs.lower(program, mesh).compile()


if __name__ == "__main__":
    _main(*sys.argv[1:])
