"""Random parameters made on the device, leaf by leaf: a 9B model in seconds, no copy on the host."""

import functools
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from griffin_jax.checkpoints.huggingface_config import model_type
from griffin_jax.checkpoints.packing import should_pack
from griffin_jax.checkpoints.tree import flat_abstract_params
from griffin_jax.config import GriffinConfig
from griffin_jax.models import declarations
from griffin_jax.quantization import FORMATS, QuantizationConfig
from griffin_jax.weight import is_weight


def random_params(
    config: GriffinConfig,
    dtype: DTypeLike = jnp.bfloat16,
    quantization: QuantizationConfig | None = None,
    seed: int = 0,
) -> dict:
    """Returns parameters to measure with: the sizes of freshly initialized ones, and noise in
    content.

    Linear weights that `quantization` packs are drawn in their packed form, as random bytes under
    equal scales. One small program is compiled per shape.

    Args:
      config: The model's shape.
      dtype: The dtype of every array outside of packed weights.
      quantization: What is packed, as `checkpoints.pack_leaf` decides it; None packs nothing.
      seed: The seed of the random numbers.

    Returns:
      The tree of `models.init_params`, on the default device.
    """
    # Among the generators, this one compiles fastest and needs no temporaries of its own.
    root = jax.random.key(seed, impl="rbg")
    params = {}
    for index, (path, leaf) in enumerate(abstract_weights(config, dtype, quantization).items()):
        key = jax.random.fold_in(root, index)
        if is_weight(leaf):
            params[path] = FORMATS[leaf.quant_type].noise(key, leaf)
        else:
            params[path] = _array(key, declarations(config)[path], leaf.dtype)
    return flax.traverse_util.unflatten_dict(params, sep="/")


def abstract_weights(
    config: GriffinConfig, dtype: DTypeLike, quantization: QuantizationConfig | None = None
) -> dict[str, Any]:
    """Returns what `random_params` makes, by path and with jax.ShapeDtypeStruct leaves."""
    weights = {}
    for path, struct in flat_abstract_params(config).items():
        if quantization is not None and should_pack(path, quantization, model_type(config)):
            form = FORMATS[quantization.quant_type]
            weights[path] = form.abstract(struct.shape, dtype, quantization)
        else:
            weights[path] = jax.ShapeDtypeStruct(struct.shape, jnp.dtype(dtype))
    return weights


def _array(key, declaration, dtype):
    shape = declaration.shape
    if declaration.follows.drawn:
        return jax.jit(lambda key: declaration.init(key, shape, dtype))(key)
    return _normal(key, shape, dtype, shape[-1] ** -0.5 if len(shape) > 1 else 0.1)


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _normal(key, shape, dtype, scale):
    return (jax.random.normal(key, shape, dtype) * scale).astype(dtype)
