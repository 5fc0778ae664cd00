"""Leaves of a model to 4 bits and back, one at a time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.checkpoints.huggingface import is_linear, tensor_name
from griffin_jax.checkpoints.huggingface_config import RECURRENT_GEMMA
from griffin_jax.errors import CheckpointError
from griffin_jax.quantization import QuantizationConfig, QuantizedTensor, quantize
from griffin_jax.quantization.tensor import decode


def pack_leaf(
    path: str,
    leaf: Any,
    settings: QuantizationConfig,
    *,
    block_size: int = 64,
    name: str | None = None,
    architecture: str = RECURRENT_GEMMA,
) -> Any:
    """Returns the leaf in 4 bits, if that is what the settings mean for it, and as it is otherwise.

    As under transformers with bitsandbytes, these are the weights of linear layers that
    `settings.skips` does not name: neither the output head, by default, nor the embedding, the
    gates and the convolution, which are no linear layers.

    Args:
      path: The path of the leaf, such as "blocks_0/mlp_block/up_proj/weight".
      leaf: An array, or a weight that is in 4 bits already and stays so.
      settings: What to pack, and how.
      block_size: Weights per scale. bitsandbytes always packs 64, and reads any.
      name: What errors call the leaf; the path by default.
      architecture: `huggingface_config.model_type` of the model: by its names for layers the
        settings skip some.

    Raises:
      ValueError: the weight holds NaN or infinity, or cannot be packed.
      CheckpointError: (a ValueError) it is in 4 bits already, but otherwise than asked for.
    """
    name = path if name is None else name
    wanted = should_pack(path, settings, architecture)
    quant_type, double_quant = settings.bnb_4bit_quant_type, settings.bnb_4bit_use_double_quant
    if isinstance(leaf, QuantizedTensor):
        asked = (quant_type, double_quant, block_size) if wanted else None
        if asked != (leaf.quant_type, leaf.double_quantized, leaf.block_size):
            raise CheckpointError(
                f"{name} is packed already, as {_describe(leaf)}: another quantization needs the "
                "weights that it was made of"
            )
        return leaf
    if not wanted:
        return leaf
    return quantize(leaf, quant_type, block_size=block_size, double_quant=double_quant, name=name)


def should_pack(
    path: str, settings: QuantizationConfig, architecture: str = RECURRENT_GEMMA
) -> bool:
    """Returns whether the settings mean a leaf to be in 4 bits; see `pack_leaf`."""
    module = tensor_name(path, architecture).removesuffix(".weight")
    return is_linear(path) and not settings.skips(module)


def _describe(tensor: QuantizedTensor) -> str:
    double = " with double quantization" if tensor.double_quantized else ""
    return f"{tensor.quant_type}{double} in blocks of {tensor.block_size}"


def squared_errors(weight: jax.Array | np.ndarray, tensor: QuantizedTensor) -> np.ndarray:
    """Returns the sums of (weight - its 4-bit values)^2 and of weight^2, float64[2]."""
    return np.asarray(_squares_by_row(weight, tensor)).sum(axis=1, dtype=np.float64)


@jax.jit
def _squares_by_row(weight, tensor):
    weight = weight.astype(jnp.float32)
    error = weight - decode(tensor, jnp.float32)
    return jnp.stack([jnp.sum(jnp.square(x), axis=-1) for x in (error, weight)])
