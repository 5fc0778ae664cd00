"""Some rows of weights, 4-bit or plain, times one vector, which may be normalised on the way."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from griffin_jax.kernels.packed_matmul_pallas_gpu import LEAVES, LOOKUP, lookup, scales
from griffin_jax.kernels.step_gpu.launch import divide
from griffin_jax.quantization.tensor import QuantizedTensor

_LARGEST = {True: 4096, False: 2048}  # weights of a row in one tile, 4-bit or not


def is_packed(weight) -> bool:
    """Whether a weight is in 4 bits."""
    return isinstance(weight, QuantizedTensor)


def tiles(width: int, packed: bool) -> list[int]:
    """Powers of two that add up to `width`, the largest first: tiles have such sizes."""
    largest = _LARGEST[packed]
    rest = width % largest
    powers = [1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1]
    return [largest] * (width // largest) + powers


def num_warps(width: int, packed: bool) -> int:
    """Of a program whose every thread has four bytes of the smallest tile, four at most."""
    return min(4, tiles(width, packed)[-1] // (2 * 32 * LOOKUP if packed else 32))


def vector(name: str, x: jax.Array, packed: bool) -> dict[str, jax.Array]:
    """A vector as `products` reads it: whole, or for 4-bit weights its even and its odd places."""
    return {f"{name}_even": x[::2], f"{name}_odd": x[1::2]} if packed else {name: x}


def vector_like(name: str, size: int, dtype, packed: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """Buffers for a vector as `products` reads it."""
    return jax.eval_shape(lambda: vector(name, jnp.zeros(size, dtype), packed))


def store(buffers: dict, name: str, begin: jax.Array, values: jax.Array) -> None:
    """Writes values [n] to a buffer of `vector_like`, from an even place on; n is even."""
    count = values.shape[0]
    if name in buffers:
        buffers[name][pl.ds(begin, count)] = values
        return
    halves = jnp.split(values.reshape(-1, 2), 2, axis=1)
    for half, part in zip(halves, ("even", "odd"), strict=True):
        buffers[f"{name}_{part}"][pl.ds(divide(begin, 2)[0], count // 2)] = half.reshape(-1)


def _refs(inputs, name):
    return [inputs[key] for key in (name, f"{name}_even", f"{name}_odd") if key in inputs]


def products(
    weights: Sequence,
    row: jax.Array,
    count: int,
    inputs: dict,
    name: str,
    norm: tuple | None = None,
    *,
    interpret: bool,
) -> list[jax.Array]:
    """Rows `row` ... `row + count` of each weight times a vector.

    Args:
      weights: [out, in] each, arrays or 4-bit weights of references.
      row: The first row.
      count: How many.
      inputs: References, the vector among them.
      name: Of the vector; see `vector`.
      norm: For plain weights, scale, a reference to [in], and epsilon of a root mean square
        normalisation of the vector (`rms_norm`). Its factor is one number, so that it multiplies
        sums, not the vector.
      interpret: Run on any device, slowly.

    Returns:
      float32[count] for each weight.
    """
    packed = is_packed(weights[0])
    width, begin = weights[0].shape[1], 0
    # Sums over tiles of one size are added up number by number, and over threads at the end.
    sums: list[dict] = [{} for _ in weights]
    squares: dict = {}
    for size in tiles(width, packed):
        # What is far away is asked for first.
        loaded = [_load(weight, row, count, begin, size) for weight in weights]
        places = pl.ds(begin // 2, size // 2) if packed else pl.ds(begin, size)
        x = [ref[places].astype(jnp.float32) for ref in _refs(inputs, name)]
        if norm is not None:
            _add(squares, size, x[0] * x[0])
            x = [x[0] + x[0] * norm[0][places].astype(jnp.float32)]
        for total, weight, tile in zip(sums, weights, loaded, strict=True):
            _add(total, size, _times(weight, tile, x, interpret))
        begin += size
    results = [sum(part.sum(axis=1) for part in total.values()) for total in sums]
    if norm is None:
        return results
    square = sum(part.sum() for part in squares.values())
    inverse = jax.lax.rsqrt(square / width + norm[1])
    return [result * inverse for result in results]


def _add(total, size, part):
    total[size] = total[size] + part if size in total else part


def _load(weight, row, count, begin, size):
    """A tile of some rows; of a 4-bit weight, bytes and scales row by row."""
    if not is_packed(weight):
        return weight[pl.ds(row, count), pl.ds(begin, size)]
    leaves = {name: getattr(weight, name) for name in LEAVES}
    columns = pl.ds(begin // 2, size // 2)
    blocks = begin // weight.block_size, size // weight.block_size
    return [
        (weight.packed[row + r, columns], scales(leaves, weight, row + r, *blocks))
        for r in range(count)
    ]


def _times(weight, tile, vector, interpret):
    """A tile of rows times a tile of the vector, summed up in part: float32[rows, ...]."""
    if not is_packed(weight):
        return tile.astype(jnp.float32) * vector[0][None]
    even, odd = vector
    shape = len(tile), tile[0][1].shape[0]
    row_of = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    sums = jnp.zeros(shape, jnp.float32)
    for r, (packed, scale) in enumerate(tile):
        high, low = lookup(packed, weight.quant_type, interpret)
        blocks = (high * even + low * odd).reshape(scale.shape[0], -1).sum(axis=1) * scale
        sums += jnp.where(row_of == r, blocks[None], 0.0)
    return sums


def add_bias(y: jax.Array, bias, rows) -> jax.Array:
    """y + bias[rows] in the dtype of y; bias may be None."""
    return y if bias is None else y + bias[rows].astype(y.dtype)
