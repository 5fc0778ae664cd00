"""Time per operation inside a loop on the device, for every kernel that serves it."""

import functools
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from jax import lax

from griffin_jax.benchmarks import kernel_cases
from griffin_jax.benchmarks.kernel_cases import Case
from griffin_jax.benchmarks.machine import Limits
from griffin_jax.benchmarks.memory import OutOfMemory, meeting_limits
from griffin_jax.benchmarks.subject import Subject
from griffin_jax.benchmarks.timing import compilation
from griffin_jax.benchmarks.timing import measure as measure_calls
from griffin_jax.kernels import choice

Row = dict[str, Any]


def measure(config: Mapping[str, Any], limits: Limits) -> Iterator[Row]:
    """Returns a row per case and kernel; one that cannot serve says why.

    Dispatch from the host costs more than a small kernel takes, so every figure is that of many
    calls in one program.
    """
    wanted = set(config["operations"])
    chosen = (case for case in cases(config) if case.operation in wanted)
    return measure_cases(chosen, config, limits)


def measure_cases(
    chosen: Iterable[Case], config: Mapping[str, Any], limits: Limits
) -> Iterator[Row]:
    """Measures given cases as `measure` does; reads `seconds` and `repeats` of the config."""
    for case in chosen:
        about = {"what": "kernel", "operation": case.operation, "case": case.name}
        try:
            with meeting_limits():
                carry, arguments = jax.block_until_ready((case.carry(), case.make()))
        except OutOfMemory as error:
            yield about | {"status": "out of memory", "message": str(error)}
            continue
        for kernel in kernels_of(case, carry, arguments):
            yield about | {"kernel": kernel} | _row(case, kernel, carry, arguments, limits, config)
        del carry, arguments


def cases(config: Mapping[str, Any]) -> Iterator[Case]:
    """Returns the cases of a config, at the shapes of its model."""
    shape = Subject.parse(config["model"], config.get("shapes")).config
    dtype, rows = config["dtype"], config["rows"]
    spread = config["spread_bytes"]
    return itertools.chain(
        kernel_cases.packed_cases(shape, rows, dtype, config["quant_type"], spread),
        kernel_cases.packed_cases(shape, rows, dtype, "int8", spread),
        kernel_cases.dense_cases(shape, rows, dtype, spread),
        kernel_cases.recurrence_cases(shape.recurrence_width, config["time"], dtype),
        kernel_cases.attention_cases(shape, config["chunk"], dtype),
        kernel_cases.block_cases(shape, dtype, config["quant_type"]),
        kernel_cases.head_cases(shape, rows, dtype),
    )


def kernels_of(case: Case, carry: Any, arguments: Any) -> tuple[str | None, ...]:
    """Returns the kernels that there are for a case's operation; None for the one of a plain
    function.
    """
    with choice.recorded() as record:
        jax.eval_shape(lambda c, a: case.step(c, a, None), carry, arguments)
    return record.get(case.operation, (None,))


def _row(case, kernel, carry, arguments, limits, config):
    floor = limits.floor_seconds(case.num_bytes, case.flops, case.dtype)
    # As many turns as should take a while, at a twentieth of the limit.
    turns = int(config["seconds"] / (20 * floor * case.calls)) + 1
    begin = time.perf_counter()
    try:
        with meeting_limits(), compilation() as compiled:
            loop = functools.partial(_loop, case, kernel, turns)
            timing = measure_calls(
                lambda: loop(carry, arguments), warmup=1, repeats=config["repeats"]
            )
    except ValueError as error:
        return {"status": "unavailable", "message": " ".join(str(error).split())}
    except OutOfMemory as error:
        return {"status": "out of memory", "message": str(error)}
    timing = timing.divided(turns * case.calls)
    return {
        "seconds": timing.to_dict(),
        "floor_seconds": floor,
        "calls_in_loop": turns * case.calls,
        "first_seconds": time.perf_counter() - begin,
        "compile": compiled.to_dict(),
        **limits.shares(timing.median, case.num_bytes, case.flops, case.dtype),
    }


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _loop(case, kernel, turns, carry, arguments):
    def turn(_, carry):
        # The arguments are the same in every turn, and a compiler would do once, before the loop, what
        # needs nothing else: most of an associative scan, the gates of a recurrence, decoded weights.
        here, carry = lax.optimization_barrier((arguments, carry))
        return case.step(carry, here, kernel)

    return lax.fori_loop(0, turns, turn, carry)
