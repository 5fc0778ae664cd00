"""The second level: scales to 8 bits and back ("double quantization", QLoRA, arXiv:2305.14314).

The scales are one number for every 64 weights or so, and bitsandbytes' result hangs on the order in
which PyTorch adds them up and on one fused multiply-add. So this level is made on the host, in
numpy, operation by operation as the CPU builds of PyTorch and bitsandbytes do it on x86. (Beyond
32,768 scales PyTorch's own mean also depends on its number of threads; one thread is matched.)
Scales whose sum overflows give an infinite offset, as they do there.
"""

import functools

import numpy as np

from griffin_jax.quantization import codes

_TABLE_SIZE = 2**16
_VECTOR = 8


@np.errstate(all="ignore")
def quantize_scales(absmax: np.ndarray):
    """Quantizes float32[n] scales to (codes uint8[n], absmax float32[ceil(n / 256)], offset
    float32[]).
    """
    offset = mean(absmax)
    centered = absmax - offset
    size, block = centered.size, codes.NESTED_BLOCK_SIZE
    blocks = np.pad(centered, (0, -size % block)).reshape(-1, block)
    nested = np.abs(blocks).max(axis=1)
    # The inverse of a subnormal number may be infinite, and zero times that takes position 0.
    scaled = np.clip(blocks * (np.float32(1) / nested)[:, None], -1, 1)
    halved = np.float64((scaled + np.float32(1)) * np.float32(0.5))
    position = (halved * (_TABLE_SIZE - 1) + 0.5).astype(np.float32)
    position = np.where(np.isnan(position), 0, position).astype(np.uint16)
    quantized = np.where(nested[:, None] == 0, 0, _nearest_codes()[position]).astype(np.uint8)
    return quantized.reshape(-1)[:size], nested, offset


@np.errstate(all="ignore")
def dequantize_scales(quantized, nested_absmax, nested_code, offset) -> np.ndarray:
    """Returns the inverse, on the host: float32[n], subnormal numbers included."""
    nested = np.repeat(nested_absmax, codes.NESTED_BLOCK_SIZE)[: quantized.size]
    return nested_code[quantized.reshape(-1)] * nested + offset


@functools.cache
def _nearest_codes() -> np.ndarray:
    """Returns the code nearest to each of 65,536 even steps from -1 to 1, which bitsandbytes rounds
    to.
    """
    book = codes.dynamic_map()
    middle = np.float32(0.5) * (book[:-1] + book[1:])
    steps = np.arange(_TABLE_SIZE, dtype=np.float32)
    values = np.float32(-1) + np.float32(2) * steps / np.float32(_TABLE_SIZE - 1)
    return np.searchsorted(middle, values, side="left").astype(np.uint8)


@np.errstate(all="ignore")
def mean(values: np.ndarray) -> np.float32:
    """Returns the mean of float32[n], added in the order of PyTorch's cascade sum on the CPU.

    Four vectors of eight lanes run side by side, each adding in chunks of chunks, so that numbers
    of one order of magnitude meet; then the four, then the lanes, are added one after another.
    """
    lanes = _VECTOR if values.size >= _VECTOR else 1
    whole = values.size - values.size % lanes
    vectors = values[:whole].reshape(-1, lanes)
    side_by_side = vectors.shape[0] - vectors.shape[0] % 4
    sums = _cascade(vectors[:side_by_side].reshape(-1, 4, lanes))
    first = _add_up(vectors[side_by_side:], sums[0])
    vector = _add_up(sums[1:], first)
    total = _add_up(values[whole:], np.float32(0))
    return np.float32(_add_up(vector, total) / np.float32(values.size))


def _cascade(rows: np.ndarray) -> np.ndarray:
    """Returns the sums over the first axis: chunks, chunks of chunks and so on, four levels in all."""
    count = rows.shape[0]
    step = 2 ** max(4, max(1, (count - 1).bit_length()) // 4)
    zero = np.zeros(rows.shape[1:], np.float32)
    left_over = []
    for _ in range(3):
        whole = rows.shape[0] - rows.shape[0] % step
        left_over.append(_add_up(rows[whole:], zero))
        chunks = rows[:whole].reshape(-1, step, *rows.shape[1:])
        rows = _add_up(chunks.swapaxes(0, 1), np.zeros((len(chunks), *zero.shape), np.float32))
    left_over.append(_add_up(rows, zero))
    return _add_up(left_over[1:], left_over[0])


def _add_up(rows, start):
    for row in rows:
        start = start + row
    return start
