"""Some rows of weights, 4-bit or plain, times one vector, which may be normalized on the way.

Plain are also weights whose numbers lie in rows as those of an array do, such as those of 8 bits, and
take a factor for each row: what is said here of plain weights is true of them.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from griffin_jax.kernels import triton
from griffin_jax.kernels.step_gpu import pairs
from griffin_jax.kernels.step_gpu.launch import Body
from griffin_jax.quantization.int8 import Int8Weight
from griffin_jax.quantization.tensor import QuantizedTensor, is_packed
from griffin_jax.weight import format_of

_LARGEST = 2048  # plain weights of a row in one tile
_ROWS = 4  # of plain weights, of a program
_TABLE = "table"

# A row for each format that is read as plain weights are: weight -> its numbers [out, in], and
# (weight, rows) -> what multiplies the sums of some rows, or None.
PLAIN: dict[type, tuple[Callable, Callable]] = {
    jax.Array: (lambda weight: weight, lambda weight, rows: None),
    Int8Weight: (lambda weight: weight.rows, lambda weight, rows: weight.scale_of(rows)),
}


def unsupported_reason(weights: Sequence) -> str | None:
    """Returns None, or why these weights [out, in] are not multiplied together."""
    formats = set(map(format_of, weights))
    if formats == {QuantizedTensor}:
        return pairs.unsupported_reason(weights)
    if len(formats) > 1 or not formats <= set(PLAIN):
        return "weights that are neither all plain, all in 8 bits nor all in 4 bits"
    return None


def tiles(width: int) -> list[int]:
    """Returns powers of two that add up to `width`, the largest first: tiles have such sizes."""
    rest = width % _LARGEST
    powers = [1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1]
    return [_LARGEST] * (width // _LARGEST) + powers


def options(weight) -> dict:
    """Returns how `launch` runs programs that multiply by such weights, 4-bit or plain."""
    if not is_packed(weight):
        return {}
    return {
        "num_warps": pairs.WARPS,
        "first": functools.partial(_first, weight.quant_type),
    }


def _first(quant_type, interpret):
    # Once in a kernel: the table has a name in it.
    return {_TABLE: pairs.table(quant_type, interpret=interpret)}


def rows_of(weights: Sequence, rows: int = _ROWS) -> tuple[int, int]:
    """Returns the rows of each weight that a program multiplies at a time, `rows` of plain ones; how
    many times.
    """
    return pairs.programs(weights) if is_packed(weights[0]) else (rows, 1)


def part(weights: Sequence, body: Callable, rows: int = _ROWS) -> tuple[int, Body]:
    """Returns a part of a `Phase` for all rows of some weights.

    Args:
      weights: [out, in] each, all 4-bit or all plain.
      body: body(refs, row, count, wait) for some rows of each weight, the first being `row`. It
        calls `start_matvec`, then `wait`.
      rows: The number of rows of plain weights that a program multiplies.
    """
    count, rounds = rows_of(weights, rows)
    programs = weights[0].shape[0] // count // rounds

    def run(refs, i, wait):
        if rounds == 1:
            body(refs, i * count, count, wait)
            return

        def turn(index, carry):
            body(refs, (i + index * programs) * count, count, lambda: pl.when(index == 0)(wait))

        lax.fori_loop(0, rounds, turn, None)

    return programs, run


def vector(name: str, x: jax.Array, packed: bool) -> dict[str, jax.Array]:
    """Returns a vector as `start_matvec` takes it: as it is, or for 4-bit weights as `pairs`
    does.
    """
    return {name: pairs.to_vector(x) if packed else x}


def vector_like(name: str, size: int, dtype, packed: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns a buffer for a vector as `start_matvec` takes it."""
    return jax.eval_shape(lambda: vector(name, jnp.zeros(size, dtype), packed))


def store(buffers: dict, name: str, begin: jax.Array, values: jax.Array) -> None:
    """Writes values [n] to a buffer of `vector_like`, from a place on."""
    if buffers[name].dtype == jnp.float16:
        pairs.store(buffers[name], begin, values)
    else:
        buffers[name][pl.ds(begin, values.shape[0])] = values


def start_matvec(
    weights: Sequence,
    row: jax.Array,
    count: int,
    refs: dict,
    name: str,
    norm: tuple[str, float] | None = None,
    *,
    interpret: bool,
) -> Callable[[], list]:
    """Starts to read rows `row` ... `row + count` of each weight, to multiply a vector by them.

    Args:
      weights: [out, in] each, arrays or 4-bit weights of references.
      row: The first row.
      count: How many; see `part`.
      refs: References by name, the vector among them, and what `options` begins a launch with.
      name: The name of the vector; see `vector_like`.
      norm: (name, epsilon) of a root mean square normalization of the vector, see `rms_norm`. For
        plain weights the name is that of its scale, [in]; for 4-bit weights, whose vector has been
        multiplied by that, of parts of the sum of its squares. The norm's factor is one number, so
        that it multiplies sums, not the vector.
      interpret: Run on any device, slowly.

    Returns:
      A function that reads the vector and returns float32[count] for each weight.
    """
    if is_packed(weights[0]):
        multiply = pairs.start_matvec(
            weights, row, count, refs[name], refs[_TABLE], interpret=interpret
        )

        def compute_packed():
            squares = None if norm is None else _whole(refs[norm[0]], interpret)
            found = multiply()
            if norm is None:
                return found
            inverse = jax.lax.rsqrt(squares.sum() / weights[0].shape[1] + norm[1])
            return [y * inverse for y in found]

        return compute_packed

    width = weights[0].shape[1]
    sizes = tiles(width)

    rows = pl.ds(row, count)
    ways = [PLAIN[format_of(weight)] for weight in weights]
    numbers = [read(weight) for weight, (read, _) in zip(weights, ways, strict=True)]
    factors = [factor(weight, rows) for weight, (_, factor) in zip(weights, ways, strict=True)]

    def load(places):
        return [array[rows, places] for array in numbers]

    first = load(pl.ds(0, sizes[0]))

    def compute():
        # Sums over tiles of one size are added up number by number, and over threads at the end.
        sums: list[dict] = [{} for _ in weights]
        squares: dict = {}
        start = 0
        for size in sizes:
            places = pl.ds(start, size)
            # What is far away is asked for first.
            loaded = load(places) if start else first
            x = refs[name][places].astype(jnp.float32)
            if norm is not None:
                _add(squares, size, x * x)
                x = x + x * refs[norm[0]][places].astype(jnp.float32)
            for total, tile in zip(sums, loaded, strict=True):
                _add(total, size, tile.astype(jnp.float32) * x[None])
            start += size
        results = [sum(part.sum(axis=1) for part in total.values()) for total in sums]
        results = [y if by is None else y * by for y, by in zip(results, factors, strict=True)]
        if norm is None:
            return results
        square = sum(part.sum() for part in squares.values())
        inverse = jax.lax.rsqrt(square / width + norm[1])
        return [result * inverse for result in results]

    return compute


def _whole(ref, interpret):
    """Returns a vector of any length and zeros behind it: Triton's have powers of two."""
    if interpret:
        return ref[...]
    place = jnp.arange(1 << (ref.size - 1).bit_length(), dtype=jnp.int32)
    return triton.load(ref.at[place], mask=place < ref.size, other=0.0)


def _add(total, size, part):
    total[size] = total[size] + part if size in total else part


def bias_of(layer, rows) -> jax.Array | None:
    """Returns the bias of some rows of a layer, (weight, bias or None), to be read before its
    products.
    """
    return None if layer[1] is None else layer[1][rows]


def add_bias(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Returns y + bias in the dtype of y; bias may be None."""
    return y if bias is None else y + bias.astype(y.dtype)
