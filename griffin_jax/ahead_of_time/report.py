"""Compiling one program and saying what came of it."""

import dataclasses
import re
import time
from typing import Any

import jax

from griffin_jax.ahead_of_time import programs, roofline, static_profile, topologies
from griffin_jax.ahead_of_time.hlo import Module
from griffin_jax.ahead_of_time.programs import Program
from griffin_jax.ahead_of_time.roofline import Roofline
from griffin_jax.sharding import make_mesh

# The compiler says what it would need in one of these ways.
_NEEDED = re.compile(r"Used ([\d.]+)([GM]) of|\(([\d.]+)([GM])\) exceeds")
_UNITS = {"G": 2**30, "M": 2**20}


def compile_program(topology: str, program: Program, static: bool = False) -> dict[str, Any]:
    """Compiles a program for a slice of TPU v5e and measures it on paper.

    Args:
      topology: Such as "v5e:2x2".
      program: What to compile; a -1 in its mesh takes the chips that remain.
      static: Also ask the compiler for its schedule, which takes two more compilations.

    Returns:
      Plain values, ready for JSON: the arguments; `fits`; `memory`, bytes per chip; `collectives`
      by kind, each with `count` and `bytes` per chip and call (decoding, per step); `compile_s`;
      `roofline`; and with `static`, `estimate`.

    Raises:
      ValueError: there is no such topology, or the mesh does not fit it, the model or the batch.
      ImportError: libtpu is not installed.
    """
    chips = topologies.num_chips(topology)
    program = dataclasses.replace(program, mesh=program.mesh.resolve(chips))
    mesh = make_mesh(**program.mesh.sizes(), devices=topologies.devices(topology))
    floor = paper(program)
    result = {
        "topology": topology,
        **dataclasses.asdict(program),
        "roofline": dataclasses.asdict(floor)
        | {
            "seconds": floor.seconds,
            "bound": floor.bound,
            "tokens_per_second_per_chip": floor.tokens_per_second_per_chip,
        },
    }
    begin = time.perf_counter()
    lowered = programs.lower(program, mesh)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return result | {"fits": False, "memory": {"peak": _needed(str(error))}}
    result["compile_s"] = time.perf_counter() - begin
    result["memory"] = _memory(compiled.memory_analysis())
    result["fits"] = True  # or else the compiler had refused
    module = Module(compiled.as_text())
    result["collectives"] = {
        kind: {"count": found.count, "bytes": found.num_bytes}
        for kind, found in module.collectives().items()
    }
    if static:
        estimate = static_profile.estimate(topology, program, module)
        result["estimate"] = dataclasses.asdict(estimate)
    return result


def _needed(message):
    found = _NEEDED.search(message)
    if found is None:
        return None
    number, unit = (part for part in found.groups() if part is not None)
    return float(number) * _UNITS[unit]


def _memory(analysis):
    arguments, outputs = analysis.argument_size_in_bytes, analysis.output_size_in_bytes
    temporaries, reused = analysis.temp_size_in_bytes, analysis.alias_size_in_bytes
    return {
        "arguments": arguments,
        "outputs": outputs - reused,
        "temporaries": temporaries,
        "peak": analysis.peak_memory_in_bytes,
    }


def paper(program: Program) -> Roofline:
    """Returns the least time of a call of a program; its mesh has no -1."""
    config, mesh = program.config, program.mesh
    if program.job == "train":
        params = programs.abstract_arguments(program)
        count = sum(x.size for x in jax.tree.leaves(params))
        return roofline.train_roofline(
            config,
            count,
            program.batch_size,
            program.tokens,
            mesh,
            recompute=program.remat == "block",
        )
    weights = roofline.tree_bytes(programs.abstract_arguments(program))
    if program.job == "lora":
        return roofline.lora_roofline(
            config,
            weights,
            program.batch_size,
            program.tokens,
            mesh,
            recompute=program.remat == "block",
        )
    if program.job == "decode":
        return roofline.decode_roofline(config, weights, program.batch_size, mesh)
    return roofline.prefill_roofline(config, weights, program.batch_size, program.tokens, mesh)
