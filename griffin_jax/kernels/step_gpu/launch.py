"""Phases of programs in one launch, of which each reads what the one before it wrote."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from griffin_jax.kernels import triton

Body = Callable[[dict[str, Any], jax.Array, Callable[[], None]], None]


@dataclasses.dataclass(frozen=True)
class Phase:
    """Programs that need not know of one another. A name stands for one array in a whole launch.

    Attributes:
      parts: (count, body); program i of a part is body(refs, i, wait), of references by name to all
        arrays of the launch. A body calls `wait` before it reads what earlier phases write, and before it
        writes anything. Every body calls it, also one that reads nothing of theirs: the phases
        behind it rely on that. It should load inputs that no phase writes before it calls `wait`.
      inputs: Pytrees of arrays that are read; those without axes are seen as arrays of one number.
      outputs: Buffers that begin undefined.
      updates: Buffers that begin as these arrays, which a GPU overwrites where they lie.
    """

    parts: Sequence[tuple[int, Body]]
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    outputs: Mapping[str, jax.ShapeDtypeStruct] = dataclasses.field(default_factory=dict)
    updates: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)


def launch(
    phases: Sequence[Phase],
    arrays: Mapping[str, Any],
    *,
    together: Sequence[int] | None = None,
    name: str,
    num_warps: int = 4,
    first: Callable[[bool], dict] | None = None,
    interpret: bool = False,
) -> dict[str, jax.Array]:
    """Runs phases one after another, several of them in one launch.

    In a launch a program waits until all of the phase before have counted themselves. That ends
    because programs start in the order of their numbers, so the programs that are waited for have
    already been scheduled.
    CUDA does not promise the order, but its GPUs keep to it, and single-pass scans rely on it, too;
    in another one the launch would hang.

    Args:
      phases: One after another.
      arrays: Inputs that all of them may read; where a launch takes several, also "counts", zeros,
        int32[N], one for each phase but the last.
      together: How many phases each launch takes; None for all in one.
      name: The name of the kernels, for profiles.
      num_warps: The number of warps of a program.
      first: What every program does first, given `interpret`; returns more references.
      interpret: Run on any device, slowly, for tests.

    Returns:
      All buffers by name.

    Raises:
      ValueError: `together` is not about all phases, or a body does not call `wait`.
    """
    together = together or [len(phases)]
    if sum(together) != len(phases):
        raise ValueError(f"launches of {together} phases are not about all {len(phases)}")
    arrays = dict(arrays)
    for phase in phases:
        arrays |= phase.updates
    options = {"name": name, "num_warps": num_warps, "first": first, "interpret": interpret}
    results, begin = {}, 0
    for size in together:
        results |= _launch(phases, range(begin, begin + size), arrays | results, **options)
        begin += size
    return results


def _launch(phases, turns, arrays, *, name, num_warps, first, interpret):
    """Runs one launch of `launch`, of the phases of these numbers, and returns what it writes."""
    own = [phases[turn] for turn in turns]
    written = ["counts"] if len(own) > 1 else []
    written += [name for phase in own for name in phase.updates]
    inputs = {name: array for name, array in arrays.items() if name not in written}
    outputs, updates = {}, {name: arrays[name] for name in written}
    for phase in own:
        inputs |= phase.inputs
        outputs |= phase.outputs
    leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.atleast_1d, inputs))
    names = [*outputs, *updates]
    totals = [sum(count for count, _ in phase.parts) for phase in own]

    def kernel(*refs):
        refs, buffers = refs[: len(leaves)], refs[len(refs) - len(names) :]
        refs = treedef.unflatten(refs) | dict(zip(names, buffers, strict=True))
        if first is not None:
            refs |= first(interpret)
        program, begin = pl.program_id(0), 0
        for turn, phase in enumerate(own):
            for count, body in phase.parts:

                def run(body=body, begin=begin, turn=turn):
                    waits = []

                    def wait():
                        waits.append(turn)
                        if turn and not interpret:
                            _wait(refs["counts"], turns[turn - 1], totals[turn - 1])

                    body(refs, program - begin, wait)
                    if not waits:
                        raise ValueError(f"{name}: a body of phase {turns[turn]} does not wait")
                    if turn < len(own) - 1:
                        _count(refs["counts"], turns[turn], interpret)

                if count == sum(totals):
                    run()
                else:
                    pl.when((program >= begin) & (program < begin + count))(run)
                begin += count

    results = pl.pallas_call(
        kernel,
        grid=(sum(totals),),
        out_shape=[
            *outputs.values(),
            *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in updates.values()),
        ],
        input_output_aliases={len(leaves) + i: len(outputs) + i for i in range(len(updates))},
        compiler_params=triton.CompilerParams(num_warps=num_warps, num_stages=1),
        name=name,
        interpret=interpret,
    )(*leaves, *updates.values())
    return dict(zip(names, results, strict=True))


def _count(counts, phase, interpret):
    """Says that a program of a phase has ended, to those that wait."""
    if interpret:
        counts[phase] += 1
        return
    triton.debug_barrier()  # all threads of this program have written
    triton.atomic_add(counts, (phase,), 1)  # releases what they wrote


def _wait(counts, phase, programs):
    """Waits for all programs of a phase, and acquires what they wrote.

    Every look empties the multiprocessor's first-level cache. Looks by plain loads, which would not,
    had XLA's compiler give a step's programs 113 registers instead of 64.
    """

    def poll():
        return triton.atomic_add(counts, (phase,), 0)

    lax.while_loop(lambda seen: seen < programs, lambda _: poll(), poll())


def divide(number: jax.Array, by: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the quotient and the remainder of int32 numbers that are not negative."""
    by = jnp.asarray(by, jnp.int32)
    return lax.div(number, by), lax.rem(number, by)
