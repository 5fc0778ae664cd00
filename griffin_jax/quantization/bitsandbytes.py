"""4-bit weights in safetensors checkpoints, as bitsandbytes names and stores them.

For a weight NAME there are

    NAME                                       the packed bytes, [.., 1], uint8 or a wider type
    NAME.absmax                                float32[blocks], or uint8[blocks] if double quantized
    NAME.quant_map                             float32[16], the code book
    NAME.nested_absmax, NAME.nested_quant_map  float32, the second level
    NAME.quant_state.bitsandbytes__nf4         uint8, the characters of a JSON object; or __fp4

and the JSON object holds the rest: type, block size, dtype and shape of the weight, and the offset
and block size of the second level.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from griffin_jax.errors import CheckpointError
from griffin_jax.quantization import blocks, codes
from griffin_jax.quantization.tensor import QuantizedTensor, check_type, leaf_shapes

_STATE = ".quant_state.bitsandbytes__"


def to_arrays(tensor: QuantizedTensor, name: str, storage: str = "uint8") -> dict[str, np.ndarray]:
    """Returns the arrays that bitsandbytes stores for a weight called `name`, and nothing else.

    Args:
      tensor: The weight.
      name: Its name in the checkpoint, such as "model.layers.0.mlp_block.up_proj.weight".
      storage: The dtype that the packed bytes pass for (`bnb_4bit_quant_storage`).

    Raises:
      CheckpointError: the packed bytes are no whole number of `storage` elements.
    """
    packed = np.asarray(tensor.packed).reshape(-1)
    width = jnp.dtype(storage).itemsize
    if packed.size % width:
        raise CheckpointError(
            f"{name}: {packed.size} packed bytes do not divide into {storage} of {width} bytes"
        )
    state = {
        "quant_type": tensor.quant_type,
        "blocksize": tensor.block_size,
        "dtype": tensor.dtype.name,
        "shape": tensor.shape,
    }
    arrays = {
        name: packed.view(jnp.dtype(storage))[:, None],
        f"{name}.absmax": np.asarray(tensor.absmax).reshape(-1),
        f"{name}.quant_map": np.asarray(tensor.code),
    }
    if tensor.double_quantized:
        arrays[f"{name}.nested_absmax"] = np.asarray(tensor.nested_absmax)
        arrays[f"{name}.nested_quant_map"] = np.asarray(tensor.nested_code)
        state |= {
            "nested_blocksize": tensor.nested_block_size,
            "nested_dtype": "float32",
            "nested_offset": float(tensor.nested_offset),
        }
    characters = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return arrays | {f"{name}{_STATE}{tensor.quant_type}": characters}


def from_arrays(arrays: Mapping[str, np.ndarray], name: str) -> QuantizedTensor:
    """Returns the weight called `name` among the arrays of a checkpoint.

    Its leaves are numpy arrays that share memory with those given.

    Raises:
      CheckpointError: an array is missing or contradicts the quant_state, or bitsandbytes knows no
        such type or block size.
    """
    state = _read_state(arrays, name)
    shape, block_size = state["shape"], state["blocksize"]
    packed_shape, absmax_shape = leaf_shapes(shape, block_size)
    packed = np.ascontiguousarray(_array(arrays, name)).reshape(-1).view(np.uint8)
    if packed.size != math.prod(packed_shape):
        raise CheckpointError(
            f"{name}: quant_state says shape {list(shape)}, which packs into "
            f"{math.prod(packed_shape)} bytes, but there are {packed.size}"
        )
    nested = f"{name}.nested_absmax" in arrays or "nested_offset" in state
    scales = {
        "absmax": _array(
            arrays, f"{name}.absmax", np.uint8 if nested else np.float32, math.prod(absmax_shape)
        ).reshape(absmax_shape)
    }
    if nested:
        scales |= _read_nested(arrays, name, state, math.prod(absmax_shape))
    code = _array(arrays, f"{name}.quant_map", np.float32, 16)
    if not np.allclose(code, codes.CODE_BOOKS[state["quant_type"]], atol=1e-6):
        raise CheckpointError(f"{name}.quant_map is not the code book of {state['quant_type']}")
    return QuantizedTensor(
        packed=packed.reshape(packed_shape),
        code=code,
        shape=shape,
        dtype=jnp.dtype(state["dtype"]),
        quant_type=state["quant_type"],
        block_size=block_size,
        **scales,
    )


def _read_nested(arrays, name: str, state: dict[str, Any], scale_count: int) -> dict[str, Any]:
    for key in ("nested_offset", "nested_blocksize"):
        if not isinstance(state.get(key), int | float):
            raise CheckpointError(f"{name}: quant_state has no {key}, which nested_absmax needs")
    block_size = state["nested_blocksize"]
    if block_size != codes.NESTED_BLOCK_SIZE:
        raise CheckpointError(
            f"{name}: nested_blocksize {block_size} is not {codes.NESTED_BLOCK_SIZE}"
        )
    if not math.isfinite(state["nested_offset"]):
        raise CheckpointError(f"{name}: nested_offset {state['nested_offset']} is not finite")
    count = -(-scale_count // block_size)
    return {
        "nested_absmax": _array(arrays, f"{name}.nested_absmax", np.float32, count),
        "nested_code": _array(arrays, f"{name}.nested_quant_map", np.float32, 256),
        "nested_offset": np.float32(state["nested_offset"]),
        "nested_block_size": block_size,
    }


def _array(arrays, name: str, dtype=None, size: int | None = None) -> np.ndarray:
    """Returns one array of a checkpoint, checked."""
    if name not in arrays:
        raise CheckpointError(f"{name} is missing")
    array = np.asarray(arrays[name])
    if dtype is not None and array.dtype != dtype:
        raise CheckpointError(f"{name} is {array.dtype}; {np.dtype(dtype)} is expected")
    if size is not None and array.size != size:
        raise CheckpointError(f"{name} has {array.size} elements; quant_state calls for {size}")
    if dtype is np.float32 and not np.isfinite(array).all():
        raise CheckpointError(f"{name} holds NaN or infinity")
    return array


def _read_state(arrays, name: str) -> dict[str, Any]:
    """Returns the JSON object of a weight, with its type, block size, dtype and shape checked."""
    prefix = f"{name}{_STATE}"
    found = [key for key in arrays if key.startswith(prefix)]
    if len(found) != 1:
        raise CheckpointError(
            f"{name} needs one {prefix.removeprefix(name)[1:]}nf4 or __fp4, found {len(found)}"
        )
    key = found[0]
    try:
        state = json.loads(bytes(np.asarray(arrays[key])))
        quant_type, block_size = state["quant_type"], state["blocksize"]
        dtype, shape = state["dtype"], tuple(int(size) for size in state["shape"])
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{key} is not a quant_state in JSON: {error!r}") from None
    if min(shape, default=0) < 1:
        raise CheckpointError(
            f"{name}: quant_state says shape {list(shape)}, which has no elements"
        )
    try:
        check_type(quant_type, block_size, name)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if key != prefix + quant_type:
        raise CheckpointError(f"{key} says its type is {quant_type!r}")
    if dtype not in blocks.INPUT_DTYPES:
        raise CheckpointError(
            f"{name}: quant_state says dtype {dtype!r}, not {', '.join(blocks.INPUT_DTYPES)}"
        )
    return state | {"shape": shape}
