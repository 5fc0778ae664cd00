"""Times packing beside bitsandbytes' own, on the same weights in the same process.

  python -m experiments.benchmark_packing

Weights are random, of the shapes of RecurrentGemma's linear layers. Each is packed in turns by
griffin_jax and, where it is installed (the [parity] extra), by bitsandbytes on the CPU; the best of
several turns counts, compilation does not. GB/s are bytes of the unpacked weight. Needs no more
memory than the largest weight several times over, below 1 GB.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
from absl import flags

from experiments import command

_PRESETS = flags.DEFINE_list("presets", ["recurrentgemma-2b"], "Shapes, with commas.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["float32", "float16", "bfloat16"], "The dtype of weights."
)
_TYPE = flags.DEFINE_enum("type", "nf4", ["nf4", "fp4"], "To pack into.")
_DOUBLE = flags.DEFINE_bool("double", False, "Quantize scales, too.")
_BLOCK = flags.DEFINE_integer("block", 64, "Weights per scale.", lower_bound=32)
_TURNS = flags.DEFINE_integer("turns", 3, "Times each weight is packed.", lower_bound=1)


def main() -> None:
    import jax

    from griffin_jax.markdown import table
    from griffin_jax.quantization import quantize

    theirs = bitsandbytes_packer()
    if theirs is None:
        note = (
            "bitsandbytes is not installed, so there is no ratio: pip install griffin_jax[parity]"
        )
        print(f"[{note}]", file=sys.stderr)
    random = np.random.default_rng(0)
    rows = []
    for shape in sorted(linear_shapes(_PRESETS.value)):
        weight = random.standard_normal(shape, np.float32) * shape[1] ** -0.5
        weight = weight.astype(_DTYPE.value)
        options = {"block_size": _BLOCK.value, "double_quant": _DOUBLE.value}
        on_device = jax.device_put(weight)
        packers = [
            lambda w=on_device, o=options: jax.block_until_ready(quantize(w, _TYPE.value, **o))
        ]
        if theirs is not None:
            packers.append(theirs(weight))
        ours, *other = best_times(packers)
        cells = [
            f"{shape[0]} x {shape[1]}",
            f"{ours * 1e3:.1f}",
            f"{weight.nbytes / ours / 1e9:.2f}",
        ]
        cells += [f"{other[0] * 1e3:.1f}", f"{other[0] / ours:.2f}"] if other else ["", ""]
        rows.append(cells)
    head = ["weight [out x in]", "ms", "GB/s", "bitsandbytes ms", "times as fast"]
    print(table(head, rows, lined_up=True))
    double = ", scales quantized too" if _DOUBLE.value else ""
    print(f"{_DTYPE.value} to {_TYPE.value}, blocks of {_BLOCK.value}{double}; {command.machine()}")


def linear_shapes(presets: list[str]) -> set[tuple[int, int]]:
    """Returns the shapes of the weights that are packed."""
    import griffin_jax
    from griffin_jax.checkpoints.huggingface import is_linear
    from griffin_jax.checkpoints.tree import flat_abstract_params

    trees = [flat_abstract_params(griffin_jax.preset(name)) for name in presets]
    return {leaf.shape for tree in trees for path, leaf in tree.items() if is_linear(path)}


def bitsandbytes_packer() -> Callable | None:
    """Makes of a weight a function that packs it with bitsandbytes; None without bitsandbytes."""
    try:
        import torch
        from bitsandbytes import functional
    except ImportError:
        return None

    def packer(weight):
        # PyTorch takes no bfloat16 arrays of numpy, but their bits.
        bits = torch.from_numpy(weight.view(f"i{weight.itemsize}").copy())
        tensor = bits.view(getattr(torch, weight.dtype.name))
        return lambda: functional.quantize_4bit(
            tensor,
            blocksize=_BLOCK.value,
            quant_type=_TYPE.value,
            compress_statistics=_DOUBLE.value,
        )

    return packer


def best_times(functions: list[Callable]) -> list[float]:
    """Returns the seconds that each function takes at its best, called in turns after a first call
    each.
    """
    times = []
    for _ in range(1 + _TURNS.value):
        times.append([])
        for function in functions:
            begin = time.perf_counter()
            function()
            times[-1].append(time.perf_counter() - begin)
    return [min(of_one) for of_one in zip(*times[1:], strict=True)]


if __name__ == "__main__":
    command.run(main)
