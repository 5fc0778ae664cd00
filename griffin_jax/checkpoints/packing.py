"""Leaves of a model to packed weights and back, one at a time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.checkpoints.huggingface import is_linear, tensor_name
from griffin_jax.errors import CheckpointError
from griffin_jax.quantization import FORMATS, QuantizationConfig
from griffin_jax.weight import Weight, is_weight


def pack_leaf(
    path: str,
    leaf: Any,
    settings: QuantizationConfig,
    *,
    architecture: str,
    block_size: int = 64,
    name: str | None = None,
) -> Any:
    """Returns the leaf packed, if that is what the settings mean for it, and as it is otherwise.

    As under transformers with bitsandbytes, these are the weights of linear layers that
    `settings.skips` does not name: neither the output head, by default, nor the embedding, the
    gates and the convolution, which are no linear layers.

    Args:
      path: The path of the leaf, such as "blocks_0/mlp_block/up_proj/weight".
      leaf: An array, or a weight that is packed already and stays so.
      settings: What to pack, and how.
      architecture: `huggingface_config.model_type` of the model: by its names for layers the
        settings skip some.
      block_size: Weights per scale, of 4 bits. bitsandbytes always packs 64, and reads any.
      name: What errors call the leaf; the path by default.

    Raises:
      ValueError: the weight holds NaN or infinity, or cannot be packed.
      CheckpointError: (a ValueError) it is packed already, but otherwise than asked for.
    """
    name = path if name is None else name
    wanted = should_pack(path, settings, architecture)
    form = FORMATS[settings.quant_type]
    if is_weight(leaf):
        found = FORMATS[leaf.quant_type].metadata(leaf)
        like = form.abstract(leaf.shape, leaf.dtype, settings, block_size=block_size)
        if not wanted or form.metadata(like) != found:
            raise CheckpointError(
                f"{name} is packed already, as {_describe(found)}: another quantization needs the "
                "weights that it was made of"
            )
        return leaf
    if not wanted:
        return leaf
    return form.pack(leaf, settings, block_size=block_size, name=name)


def should_pack(path: str, settings: QuantizationConfig, architecture: str) -> bool:
    """Returns whether the settings mean a leaf to be packed; see `pack_leaf`."""
    module = tensor_name(path, architecture).removesuffix(".weight")
    return is_linear(path) and not settings.skips(module)


def _describe(metadata):
    double = " with double quantization" if metadata.get("double_quant") else ""
    blocks = f" in blocks of {metadata['block_size']}" if "block_size" in metadata else ""
    return f"{metadata['quant_type']}{double}{blocks}"


def squared_errors(weight: jax.Array | np.ndarray, packed: Weight) -> np.ndarray:
    """Returns the sums of (weight - its packed values)^2 and of weight^2, float64[2]."""
    return np.asarray(_squares_by_row(weight, packed)).sum(axis=1, dtype=np.float64)


@jax.jit
def _squares_by_row(weight, packed):
    weight = weight.astype(jnp.float32)
    error = weight - packed.dequantize(jnp.float32)
    return jnp.stack([jnp.sum(jnp.square(x), axis=-1) for x in (error, weight)])
