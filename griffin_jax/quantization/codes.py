"""The code books of NF4, FP4 and the 8-bit second level, as bitsandbytes defines them.

Everything here is a small numpy constant; nothing runs on a device.
"""

import functools

import numpy as np

# Sixteen quantiles of the normal distribution, scaled to [-1, 1] (QLoRA, arXiv:2305.14314).
_NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
], np.float32)  # fmt: skip
# One sign, two exponent and one mantissa bit, in the order of the bit patterns.
_FP4 = (
    np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32) / 12
)

CODE_BOOKS = {"nf4": _NF4, "fp4": _FP4}
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NESTED_BLOCK_SIZE = 256


def ordered_codes(quant_type: str) -> np.ndarray:
    """Returns the 16 codes by increasing value, int[16].

    FP4 has two zeros, 0 and 8. The order (0, 8) is the one bitsandbytes has on the CPU: there a
    value that rounds to zero gets code 0 if it is not positive and code 8 if it is.
    """
    return np.argsort(CODE_BOOKS[quant_type], kind="stable")


def midpoints(quant_type: str) -> np.ndarray:
    """Returns where one code gives way to the next, float32[15]: half way between their values."""
    values = CODE_BOOKS[quant_type][ordered_codes(quant_type)]
    return (values[:-1] + values[1:]) / np.float32(2)


@functools.cache
def dynamic_map() -> np.ndarray:
    """Returns the signed 8-bit dynamic code book of the second level, float32[256], increasing.

    A value is a sign, a decimal exponent in unary and a linear fraction in the bits left over
    ("8-bit approximations for parallelism in deep learning", arXiv:1511.04561).
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = _linspace(0.1, 1.0, 2**exponent + 1)
        means = (edges[:-1] + edges[1:]) / np.float32(2)
        magnitudes = np.float32(10.0 ** (exponent - 6)) * means
        values.extend([*magnitudes, *-magnitudes])
    return np.sort(np.float32(values))


def _linspace(start: float, stop: float, count: int) -> np.ndarray:
    """Returns float32 points counted from the nearer end, each rounded once as torch.linspace
    does.
    """
    first, last = np.float32(start), np.float32(stop)
    step = np.float64((last - first) / np.float32(count - 1))
    index = np.arange(count)
    points = np.where(index < count // 2, first + step * index, last - step * index[::-1])
    return points.astype(np.float32)
