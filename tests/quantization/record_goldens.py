"""Records what bitsandbytes makes of some weights, for tests that run without it.

    python -m tests.quantization.record_goldens

writes goldens.npz beside this file, with the CPU builds of PyTorch and bitsandbytes, on one thread.
"""

import pathlib

import bitsandbytes.functional
import numpy as np
import torch

from tests.quantization.weights import weights

PATH = pathlib.Path(__file__).with_name("goldens.npz")


def to_torch(array: np.ndarray) -> torch.Tensor:
    integer = array.view(np.int16 if array.itemsize == 2 else np.int32)
    return torch.from_numpy(integer).view(getattr(torch, array.dtype.name))


def to_bits(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's bits as int8, int16 or int32, which compare without regard to NaN or -0."""
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.contiguous().view(integer).numpy()


def quantized(weight: np.ndarray, quant_type: str, block_size: int, double: bool):
    """What bitsandbytes makes of a weight: names to bits, and its values in two dtypes."""
    packed, state = bitsandbytes.functional.quantize_4bit(
        to_torch(weight),
        blocksize=block_size,
        quant_type=quant_type,
        compress_statistics=double,
    )
    made = {"packed": packed.reshape(-1), "absmax": state.absmax}
    if double:
        made |= {
            "nested_absmax": state.state2.absmax,
            "nested_offset": state.offset,
        }
    for dtype in {weight.dtype.name, "float32"}:
        state.dtype = getattr(torch, dtype)
        made[f"values in {dtype}"] = bitsandbytes.functional.dequantize_4bit(packed, state)
    return {name: to_bits(value) for name, value in made.items()}


def sequence(size: int) -> np.ndarray:
    """Positive float32 numbers over a few orders of magnitude, the same everywhere."""
    index = np.arange(1, size + 1)
    return (index * 7919 % 1009 / np.float32(1009)).astype(np.float32) ** 3


def record() -> dict[str, np.ndarray]:
    """Entries are named input|shape|dtype, output|shape|dtype|type|block|double|what and mean|size.

    Inputs and outputs are stacked over the weights of that shape and dtype.
    """
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")
    entries = {}

    def add(stacked, quant_type, block_size, double):
        shape, dtype = stacked.shape[1:], stacked.dtype.name
        entries[f"input|{shape}|{dtype}"] = stacked.view(f"i{stacked.itemsize}")
        made = [quantized(weight, quant_type, block_size, double) for weight in stacked]
        for what in made[0]:
            case = f"{shape}|{dtype}|{quant_type}|{block_size}|{double}|{what}"
            entries[f"output|{case}"] = np.stack([one[what] for one in made])

    for dtype in ("float32", "float16", "bfloat16"):
        for shape in ((2, 128), (3, 43)):
            stacked = np.stack([weight for _, weight in weights(dtype, shape)])
            for quant_type in ("nf4", "fp4"):
                for double in (False, True):
                    add(stacked, quant_type, 64, double)
    weight = np.random.default_rng(1).standard_normal((1, 1, 4096 + 33)).astype(np.float16)
    for block_size in (32, 512, 4096):
        add(weight, "nf4", block_size, False)
    for size in (1, 7, 8, 31, 33, 257, 1000, 20_000):
        entries[f"mean|{size}"] = to_bits(torch.from_numpy(sequence(size)).mean())
    return entries


if __name__ == "__main__":
    np.savez_compressed(PATH, **record())
