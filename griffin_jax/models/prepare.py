"""Parameters as this machine runs them best."""

from typing import Any

import jax
from jax.typing import DTypeLike

from griffin_jax.config import GriffinConfig
from griffin_jax.kernels.packed_matmul import lay_out
from griffin_jax.kernels.packed_matmul_cpu import add_copies_if_they_fit, values_fit
from griffin_jax.models.declarations import put_on_mesh
from griffin_jax.models.stack import is_stacked, stack_params, stacks_by_default


def prepare_params(
    config: GriffinConfig,
    params: dict[str, Any],
    *,
    mesh: jax.sharding.Mesh | None = None,
    stack_layers: bool | None = None,
    consume: bool = False,
) -> dict[str, Any]:
    """Returns parameters ready to run here: their layers stacked, on the mesh, in the kernels' layout.

    Whatever makes a model ends with this: loading, packing and drawing random weights.

    Args:
      config: The model's shape.
      params: One tree per layer, or already stacked; arrays or packed weights.
      mesh: Where to lay what is not there yet; None leaves arrays on the device that they are on.
      stack_layers: Run the layers in a loop over groups; see `stack_params`. By default where that
        runs as fast as layer by layer, as measured.
      consume: Empty `params` and free its arrays on the way, so that no second copy comes to be.

    Raises:
      MeshError: the mesh does not divide the model.
      ValueError: layers to be stacked are not of one kind.
    """
    stack = stacks_by_default(config) if stack_layers is None else stack_layers
    if stack and not is_stacked(params):
        params = stack_params(config, params, consume=consume)
    if mesh is not None:
        params = put_on_mesh(config, params, mesh)
    return lay_out(params, consume=consume)


def prepare_decoding(params: dict[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """Returns the parameters as engines read them: on a CPU with a second copy of 4-bit weights.

    It is apart from `prepare_params` since the copy is for engines alone: neither training nor saving
    knows of it. Of a small model it is the weights' values, of others their bytes in another order;
    there is none where memory is short.

    Args:
      params: Parameters as `prepare_params` returns them.
      dtype: The dtype of activations.
    """
    return add_copies_if_they_fit(params, dtype)


def decodes_once(params: dict[str, Any], dtype: DTypeLike) -> bool:
    """Returns whether what `prepare_decoding` adds serves whatever reads the parameters.

    It does where it is the values of a small model's weights. Bytes in another order are for a few
    rows, and a large model would hold them for nothing else.
    """
    return values_fit(params, dtype)
