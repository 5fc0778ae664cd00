"""Kernels of several phases: every program ends one before any begins the next."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

NUM_WARPS = 4
# Polls until a program gives up waiting, long after any sound launch is over.
_PATIENCE = 1_000_000


def num_programs(per_core: int) -> int:
    """For the device of this process, so many on each of its multiprocessors."""
    return per_core * getattr(jax.devices()[0], "core_count", 1)


def run(
    phases: Sequence[Callable],
    inputs: Any,
    outputs: dict[str, jax.ShapeDtypeStruct],
    updates: dict[str, jax.Array],
    *,
    name: str,
    programs: int,
    interpret: bool = False,
) -> dict[str, jax.Array]:
    """Runs phases one after another over the same arrays, on a GPU in one launch.

    A phase is a function (inputs, buffers, program, programs) of references. What a phase wrote to
    a buffer, whichever program did, the phases after it read.

    All programs must be able to run at once, for they wait for one another: a multiprocessor of
    65,536 registers holds 4 programs of 128 threads that take up to 128 registers each, or 3 of up
    to 168. A program that has waited in vain for too long writes NaN to the first output and ends.

    Args:
      phases: One after another.
      inputs: A pytree of arrays that are read; those without axes are seen as arrays of one number.
      outputs: Buffers that begin undefined.
      updates: Buffers that begin as these arrays, which a GPU overwrites where they lie.
      name: Of the kernel, for profiles.
      programs: How many share the work of a phase.
      interpret: Run on any device, slowly, one phase a launch, for tests.

    Returns:
      All buffers.
    """
    # Numbers become arrays of one: a kernel refers to arrays alone.
    leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.atleast_1d, inputs))
    names = [*outputs, *updates]

    def kernel(*refs, phases):
        tree = treedef.unflatten(refs[: len(leaves)])
        *buffers, counters = refs[len(refs) - len(names) - 1 :]
        buffers = dict(zip(names, buffers, strict=True))
        program = pl.program_id(0)
        complete = jnp.bool_(True)
        for index, phase in enumerate(phases):
            if index:
                complete &= _wait_for_all(counters, index - 1, programs)
            phase(tree, buffers, program, programs)

        first = buffers[names[0]]

        @pl.when(jnp.logical_not(complete))
        def spoil():
            # NaN by a root: Pallas has no such constant for Triton.
            nan = jnp.sqrt(-1.0 - program.astype(jnp.float32))
            first[divide(program, first.shape[0])[1]] = nan.astype(first.dtype)

    def call(phases, aliased, created):
        """Overwrites `aliased` and returns `created` and them."""
        return pl.pallas_call(
            functools.partial(kernel, phases=phases),
            grid=(programs,),
            out_shape=[*created, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in aliased)],
            input_output_aliases={
                len(leaves) + i: len(created) + i for i in range(len(aliased))
            },
            compiler_params=plgpu.CompilerParams(num_warps=NUM_WARPS, num_stages=1),
            name=name,
            interpret=interpret,
        )(*leaves, *aliased)

    counters = jnp.zeros(max(len(phases) - 1, 1), jnp.int32)
    if not interpret:
        results = call(phases, [*updates.values(), counters], outputs.values())
    else:
        # Programs run one after another here, so that none can wait for a later one.
        results = [_undefined(x) for x in outputs.values()] + [*updates.values(), counters]
        for phase in phases:
            results = call([phase], results, [])
    return dict(zip(names, results, strict=False))


def _undefined(x):
    value = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else -1
    return jnp.full(x.shape, value, x.dtype)


def _wait_for_all(counters, index, programs):
    """A barrier over the grid, by a counter that begins at zero; False if some never came."""
    plgpu.debug_barrier()  # all threads of this program have written
    plgpu.atomic_add(counters, (index,), 1)  # releases what they wrote

    def waiting(carry):
        seen, polls = carry
        return (seen < programs) & (polls < _PATIENCE)

    def poll(carry):
        return plgpu.load(counters.at[index], volatile=True), carry[1] + 1

    seen, _ = lax.while_loop(waiting, poll, (jnp.int32(0), jnp.int32(0)))
    # Acquires what the others wrote: a poll alone leaves old lines in the multiprocessor's cache.
    plgpu.atomic_add(counters, (index,), 0)
    plgpu.debug_barrier()
    return seen >= programs


def each_turn(count: int, program: jax.Array, programs: int, first: int, body: Callable) -> None:
    """Runs body(i) for this program's share of 0 ... count - 1.

    Args:
      count: Of turns, shared out one after another.
      program: This program.
      programs: All of them, an int.
      first: The program that takes turn 0; those after it go on from there.
      body: Writes to references.
    """
    _, begin = divide(program - first % programs + programs, programs)
    turns, _ = divide(count - begin + programs - 1, programs)

    def turn(i, carry):
        body(begin + i * programs)
        return carry

    lax.fori_loop(0, turns, turn, 0)


def divide(number: jax.Array, by: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Quotient and remainder of int32 numbers that are not negative."""
    by = jnp.asarray(by, jnp.int32)
    return lax.div(number, by), lax.rem(number, by)
