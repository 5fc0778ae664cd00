"""Random parameters made on the device, leaf by leaf: a 9B model in seconds, no copy on the host."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from griffin_jax.checkpoints.huggingface import is_linear, tensor_name
from griffin_jax.checkpoints.tree import flat_abstract_params
from griffin_jax.config import GriffinConfig
from griffin_jax.quantization import QuantizationConfig, codes
from griffin_jax.quantization.tensor import abstract


def random_params(
    config: GriffinConfig,
    dtype: DTypeLike = jnp.bfloat16,
    quantization: QuantizationConfig | None = None,
    seed: int = 0,
) -> dict:
    """Parameters to measure with: the sizes of freshly initialised ones, and noise in content.

    Linear weights that `quantization` packs are drawn in their packed form, as random bytes under
    equal scales. One small program is compiled per shape.

    Args:
      config: The model's shape.
      dtype: Of every array outside of packed weights.
      quantization: What is packed, as `checkpoints.pack_leaf` decides it; None packs nothing.
      seed: Of the random numbers.

    Returns:
      The tree of `models.init_params`, on the default device.
    """
    dtype = jnp.dtype(dtype)
    # Of the generators, this one compiles fastest and needs no temporaries of its own.
    root = jax.random.key(seed, impl="rbg")
    params = {}
    for index, (path, struct) in enumerate(flat_abstract_params(config).items()):
        key = jax.random.fold_in(root, index)
        if quantization is not None and _is_packed(path, quantization):
            kind = quantization.bnb_4bit_quant_type, quantization.bnb_4bit_use_double_quant
            params[path] = _packed(key, struct.shape, dtype, *kind)
        else:
            params[path] = _array(key, path, struct.shape, dtype)
    return flax.traverse_util.unflatten_dict(params, sep="/")


def _is_packed(path, quantization):
    return is_linear(path) and not quantization.skips(tensor_name(path).removesuffix(".weight"))


def _array(key, path, shape, dtype):
    if path.endswith("a_param"):  # decays from 0.9 to 0.999 and more
        return _uniform(key, shape, dtype, -7.0, -2.0)
    return _normal(key, shape, dtype, shape[-1] ** -0.5 if len(shape) > 1 else 0.1)


def _packed(key, shape, dtype, quant_type, double_quant):
    tensor = abstract(shape, dtype, quant_type, double_quant=double_quant)
    code = jnp.asarray(codes.CODE_BOOKS[quant_type])
    scale = np.float32(shape[-1] ** -0.5 / jnp.sqrt(jnp.mean(jnp.square(code))))
    packed = _bytes(key, tensor.packed.shape)
    if not double_quant:
        absmax = jnp.full(tensor.absmax.shape, scale)
        return tensor.replace(packed=packed, absmax=absmax, code=code)
    return tensor.replace(
        packed=packed,
        absmax=_bytes(jax.random.fold_in(key, 1), tensor.absmax.shape),
        code=code,
        nested_absmax=jnp.full(tensor.nested_absmax.shape, scale / 4),
        nested_code=jnp.asarray(codes.dynamic_map()),
        nested_offset=jnp.asarray(scale),
    )


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _normal(key, shape, dtype, scale):
    return (jax.random.normal(key, shape, dtype) * scale).astype(dtype)


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _uniform(key, shape, dtype, low, high):
    return jax.random.uniform(key, shape, jnp.float32, low, high).astype(dtype)


@functools.partial(jax.jit, static_argnames="shape")
def _bytes(key, shape):
    return jax.random.bits(key, shape, jnp.uint8)
