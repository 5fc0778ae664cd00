"""A residual block's step: the phases of a mixing half, and those of the MLP behind it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from griffin_jax.kernels.step_gpu.launch import Body, Phase, launch
from griffin_jax.kernels.step_gpu.mlp import mlp_phases, project_and_add
from griffin_jax.kernels.step_gpu.norm import Norm
from griffin_jax.kernels.step_gpu.products import options
from griffin_jax.quantization.tensor import is_packed


def run_block(
    x: jax.Array,
    scales: Sequence[jax.Array],
    layers: Mapping[str, tuple],
    mixing: Callable[[Norm], Sequence[Phase]],
    last: str,
    arrays: Mapping[str, Any],
    *,
    beside: Sequence[tuple[int, Body]],
    updates: Mapping[str, jax.Array],
    together: Sequence[int],
    eps: float,
    name: str,
    interpret: bool,
) -> dict[str, jax.Array]:
    """Runs a residual block for one token: with m = x + mixing(norm(x)), it is m + MLP(norm(m)).

    Args:
      x: [D].
      scales: The scales of both norms, [D] each.
      layers: Linear ones by name, pairs of weight and bias, the weights all 4-bit or all plain; of
        them gate_proj, up_proj and down_proj are the MLP's, see `mlp_phases`.
      mixing: Given the norm of "x", phases that read it and write "z", which `last` reads.
      last: The name of the mixing half's last layer.
      arrays: More inputs of the phases.
      beside: More parts of the phase of that layer.
      updates: What those overwrite, by name.
      together: How many phases each launch takes for 4-bit weights: as many as leave registers for
        four programs on a multiprocessor. Plain ones have a launch for each, since theirs take many
        more registers together.
      eps: The epsilon of the norms.
      name: The name of the kernels, for profiles.
      interpret: Run on any device, slowly, for tests.

    Returns:
      What the phases write, by name; "out" is the block's, [D] in the dtype of x.
    """
    mlp = [layers[layer] for layer in ("gate_proj", "up_proj", "down_proj")]
    packed = is_packed(mlp[0][0])
    first, second = (Norm(of, packed, eps) for of in ("x", "middle"))
    ends = {"residual": first.of, "h": "z", "out": second.of}
    phases = [
        *mixing(first),
        project_and_add(
            x, layers[last], second, beside, updates, name=last, interpret=interpret, **ends
        ),
        *mlp_phases(x, second, *mlp, interpret=interpret),
    ]
    prepared = first.prepare_inputs(x, scales[0], len(phases), interpret=interpret)
    return launch(
        phases,
        {**prepared, second.scale: scales[1], **arrays},
        together=together if packed else [1] * len(phases),
        name=name,
        interpret=interpret,
        **options(mlp[0][0]),
    )
