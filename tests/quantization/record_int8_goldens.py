"""Records what bitsandbytes makes of some weights in 8 bits, for tests that run without it.

    python -m tests.quantization.record_int8_goldens

writes int8_goldens.npz beside this file, with the CPU builds of PyTorch and bitsandbytes.
"""

import pathlib

import bitsandbytes.nn
import numpy as np
from bitsandbytes.functional import int8_vectorwise_dequant

from tests.quantization.int8_weights import weights
from tests.quantization.record_goldens import to_bits, to_torch

PATH = pathlib.Path(__file__).with_name("int8_goldens.npz")


def quantized(weight: np.ndarray) -> dict[str, np.ndarray]:
    """The integers, scales and float32 values that bitsandbytes' own layer makes of a weight."""
    made = bitsandbytes.nn.Int8Params(to_torch(weight), requires_grad=False).to("cpu")
    values = int8_vectorwise_dequant(made.CB, made.SCB)
    return {"rows": made.CB.numpy(), "absmax": to_bits(made.SCB), "values": to_bits(values)}


def record() -> dict[str, np.ndarray]:
    """Entries are input|dtype and rows, absmax and values|dtype, stacked over the weights."""
    entries = {}
    for dtype in ("float32", "float16", "bfloat16"):
        stacked = np.stack([weight for _, weight in weights(dtype)])
        entries[f"input|{dtype}"] = stacked.view(f"i{stacked.itemsize}")
        made = [quantized(weight) for weight in stacked]
        for what in made[0]:
            entries[f"{what}|{dtype}"] = np.stack([one[what] for one in made])
    return entries


if __name__ == "__main__":
    np.savez_compressed(PATH, **record())
