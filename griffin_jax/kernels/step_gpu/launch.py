"""One launch of programs that need not know of one another."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

Body = Callable[[Any, dict[str, Any], jax.Array], None]


def launch(
    parts: Sequence[tuple[int, Body]],
    inputs: Any,
    outputs: Mapping[str, jax.ShapeDtypeStruct],
    updates: Mapping[str, jax.Array] | None = None,
    *,
    name: str,
    num_warps: int = 4,
    first: Callable[[bool], dict] | None = None,
    rounds: int = 1,
    interpret: bool = False,
) -> dict[str, jax.Array]:
    """Runs `count` programs of each part, all at once and in no order.

    Args:
      parts: (count, body); program i of a part is body(inputs, buffers, i) of references.
      inputs: A pytree of arrays that are read; those without axes are seen as arrays of one number.
      outputs: Buffers that begin undefined.
      updates: Buffers that begin as these arrays, which a GPU overwrites where they lie.
      name: Of the kernel, for profiles.
      num_warps: Of a program.
      first: What every program does before its part, given `interpret`; returns more inputs.
      rounds: Of the first part a program runs so many, one after another.
      interpret: Run on any device, slowly, for tests.

    Returns:
      All buffers.
    """
    updates = updates or {}
    parts = [(parts[0][0] // rounds, _in_rounds(*parts[0], rounds)), *parts[1:]]
    leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.atleast_1d, inputs))
    names = [*outputs, *updates]

    def kernel(*refs):
        tree = treedef.unflatten(refs[: len(leaves)])
        if first is not None:
            tree |= first(interpret)
        buffers = dict(zip(names, refs[len(refs) - len(names) :], strict=True))
        program, begin = pl.program_id(0), 0
        for count, body in parts:

            def run(body=body, begin=begin):
                body(tree, buffers, program - begin)

            if len(parts) == 1:
                run()
            else:
                pl.when((program >= begin) & (program < begin + count))(run)
            begin += count

    results = pl.pallas_call(
        kernel,
        grid=(sum(count for count, _ in parts),),
        out_shape=[
            *outputs.values(),
            *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in updates.values()),
        ],
        input_output_aliases={len(leaves) + i: len(outputs) + i for i in range(len(updates))},
        compiler_params=plgpu.CompilerParams(num_warps=num_warps, num_stages=1),
        name=name,
        interpret=interpret,
    )(*leaves, *updates.values())
    return dict(zip(names, results, strict=True))


def _in_rounds(count, body, rounds):
    """A body that runs `rounds` of `count` programs as one."""
    if rounds == 1:
        return body
    apart = count // rounds

    def run(inputs, buffers, i):
        lax.fori_loop(0, rounds, lambda r, _: body(inputs, buffers, i + r * apart), None)

    return run


def divide(number: jax.Array, by: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Quotient and remainder of int32 numbers that are not negative."""
    by = jnp.asarray(by, jnp.int32)
    return lax.div(number, by), lax.rem(number, by)
