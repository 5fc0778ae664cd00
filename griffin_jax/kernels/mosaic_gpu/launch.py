"""What kernels through Mosaic GPU share: parameters, loads, and launches that write into arrays which they
are given.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

_INDEX = inspect.signature(plgpu.load).parameters.get("idx")
# JAX 0.10 wants an index of all there is, later versions want none.
_ALL = () if _INDEX is None or _INDEX.default is not _INDEX.empty else (...,)
# A kernel that says itself what each lane of a warp holds, and when its warpgroups wait for one another.
LANES = plgpu.CompilerParams(
    lowering_semantics=plgpu.LoweringSemantics.Lane,
    unsafe_no_auto_barriers=True,
    approx_math=True,
)


def load(ref: Any, layout: Any, interpret: Any = False) -> Any:
    """Returns what a reference refers to, in a layout, which an interpreter has none of."""
    return ref[...] if interpret else plgpu.load(ref, *_ALL, layout=layout, optimized=False)


def launch_in_place(
    body: Callable,
    inputs: Sequence[jax.Array],
    updated: Sequence[jax.Array],
    out_type: Sequence[jax.ShapeDtypeStruct],
    scratch_types: Sequence[Any],
    *,
    name: str,
    interpret: Any = False,
    **mesh: Any,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Runs a kernel that changes some of its arrays where they lie.

    An array that nothing else reads afterward is not copied, such as a state that was donated or
    that a loop carries.

    Args:
      body: A function of references to `inputs`, `updated`, the results and the scratch memory.
      inputs: What is read alone.
      updated: What is read and written.
      out_type: The type of the results.
      scratch_types: The kernel's barriers and shared memory.
      name: The kernel's name.
      interpret: Parameters of Pallas' interpreter, or False.
      **mesh: Arguments of `plgpu.Mesh`: the grid and the warpgroups of a block.

    Returns:
      The results, and `updated` afterward.
    """

    def scoped(*refs):
        def run(*scratch):
            body(*refs, *scratch)

        pl.run_scoped(run, *scratch_types, collective_axes=mesh.get("thread_name", ()))

    refs = [jax.new_ref(array, memory_space=plgpu.GMEM) for array in updated]
    results = pl.kernel(
        scoped,
        out_type=list(out_type),
        mesh=plgpu.Mesh(kernel_name=name, **mesh),
        compiler_params=LANES,
        interpret=interpret,
        name=name,
    )(*inputs, *refs)
    return list(results), [jax.freeze(ref) for ref in refs]
