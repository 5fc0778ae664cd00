"""Products with 4-bit weights on a CPU.

A byte of a 4-bit weight holds the codes of two neighbors in a row. For a vector x there is a
table per byte of the row with what each of the 256 bytes contributes,

    table[i, byte] = code[byte >> 4] x[2 i] + code[byte & 15] x[2 i + 1],

and a product is y[o] = sum over blocks of absmax[o, block] * sum over i of table[i, packed[o, i]]:
a load and an addition for two weights, with neither a conversion nor a multiplication. The tables
of a few bytes fit into the first-level cache, so a core takes 8 bytes of all rows, then the next 8.
For that it reads a second copy of the bytes, by column (`add_transposed`).

For more rows, a weight is decoded a few rows at a time as they are multiplied. That takes as long as
the products of some 32 rows, and a small model leaves room to decode it once (`add_decoded`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.typing import DTypeLike

from griffin_jax.host import available_memory
from griffin_jax.kernels import rows_cpu
from griffin_jax.kernels.dense_matmul import dense_matmul, has_bfloat16
from griffin_jax.quantization.tensor import (
    QuantizedTensor,
    TransposedCopy,
    decode_scales,
    dequantize_on_host,
    dequantize_scales,
    is_packed,
)

# Rows of x for which the tables are faster than decoding the weight.
MAX_TABLE_ROWS = 4
# Bytes of all decoded weights at most. Up to there they were timed, and beat tables at one row, too; a
# larger model is in 4 bits so that it fits, and is read from memory for every token.
MAX_DECODED_BYTES = 1 << 27
_BYTES = 32  # of a group of `TransposedCopy`
# Look-ups in one sum: of 8, LLVM makes vectors; of 32, it does not.
_LOOKUPS = 8
# Sums in a turn of the loop. XLA leaves half as many to a single core, and at the end of each turn
# the cores wait for one another.
_TURN = 3 << 14
# result[i, j] = table[i, index[i, j]]
_BY_ROW = jax.lax.GatherDimensionNumbers(
    offset_dims=(),
    collapsed_slice_dims=(1,),
    start_index_map=(1,),
    operand_batching_dims=(0,),
    start_indices_batching_dims=(0,),
)


def add_copies_if_they_fit(params: Any, dtype: DTypeLike) -> Any:
    """Returns the parameters with what a CPU reads in place of 4-bit weights, where memory allows it.

    It is their values where those of all weights take `MAX_DECODED_BYTES` at most (`add_decoded`), and
    otherwise their bytes by column (`add_transposed`). Either takes at most half of the memory that is
    free.

    Args:
      params: A tree of parameters.
      dtype: The dtype of activations.
    """
    if values_fit(params, dtype):
        return add_decoded(params, dtype)
    return add_transposed_if_it_fits(params)


def values_fit(params: Any, dtype: DTypeLike) -> bool:
    """Returns whether `add_copies_if_they_fit` adds values, which serve any number of rows."""
    size = decoded_nbytes(params, dtype) if jax.default_backend() == "cpu" else 0
    return 0 < size <= MAX_DECODED_BYTES and _fits(size, "decoded weights")


def add_transposed_if_it_fits(params: Any) -> Any:
    """Returns the parameters with `add_transposed`, on a CPU if half of the memory that is free is
    enough.

    A copy takes 0.56 bytes per weight, beside the 0.56 of the weight itself.
    """
    size = transposed_nbytes(params) if jax.default_backend() == "cpu" else 0
    return add_transposed(params) if size and _fits(size, "tables") else params


def _fits(size, what):
    free = available_memory()
    if free is None or size <= free // 2:
        return True
    logging.vlog(
        1, "packed_matmul: %s would take %d MB, %d MB are free", what, size >> 20, free >> 20
    )
    return False


def add_transposed(params: Any) -> Any:
    """Returns the parameters with a second copy of the bytes of 4-bit weights, as decoding reads
    them.

    Call it outside of jit. Weights that tables do not serve stay as they are.
    """
    return jax.tree.map(_add_transposed, params, is_leaf=is_packed)


def transposed_nbytes(params: Any) -> int:
    """Returns the bytes that `add_transposed` adds."""
    leaves = jax.tree.leaves(params, is_leaf=is_packed)
    packed = [leaf for leaf in leaves if _is_to_be_transposed(leaf)]
    return sum(leaf.packed.size + 4 * leaf.absmax.size for leaf in packed)


def add_decoded(params: Any, dtype: DTypeLike) -> Any:
    """Returns the parameters with the values of 4-bit weights beside them.

    Call it outside of jit. Weights that are stacked, or no linear layer's, stay as they are.

    Args:
      params: A tree of parameters.
      dtype: The dtype of activations. The values are in bfloat16 for bfloat16 ones on a processor that
        multiplies those, as `rows_matmul` has them there, and otherwise in float32.
    """

    def add(leaf):
        if not _is_to_be_decoded(leaf):
            return leaf
        # A program for each shape would take longer to compile than all of this.
        values = dequantize_on_host(leaf, _decoded_dtype(dtype))
        return leaf.replace(decoded=jax.device_put(values, leaf.packed.sharding))

    return jax.tree.map(add, params, is_leaf=is_packed)


def decoded_nbytes(params: Any, dtype: DTypeLike) -> int:
    """Returns the bytes that `add_decoded` adds."""
    leaves = jax.tree.leaves(params, is_leaf=is_packed)
    return _decoded_dtype(dtype).itemsize * sum(x.size for x in leaves if _is_to_be_decoded(x))


def table_unsupported(rows: int, weights: Sequence[QuantizedTensor]) -> str | None:
    """Returns the reason why tables do not support these products; None if they do."""
    if rows > MAX_TABLE_ROWS:
        return f"it takes up to {MAX_TABLE_ROWS} rows, not {rows}"
    if any(weight.transposed is None for weight in weights):
        return "it needs a copy of the bytes in transposed order; see add_transposed"
    return None


def decoded_unsupported(dtype: DTypeLike, weights: Sequence[QuantizedTensor]) -> str | None:
    """Returns the reason why decoded weights do not serve activations of a dtype; None if they do."""
    if any(weight.decoded is None for weight in weights):
        return "it needs the weights' values beside them; see add_decoded"
    if any(weight.decoded.dtype != _decoded_dtype(dtype) for weight in weights):
        return f"the values beside the weights are for activations of another dtype than {dtype}"
    return None


def _decoded_dtype(dtype):
    bfloat16 = jnp.dtype(dtype) == jnp.bfloat16 and has_bfloat16()
    return jnp.dtype(jnp.bfloat16 if bfloat16 else jnp.float32)


def rows_unsupported(weights: Sequence[QuantizedTensor]) -> str | None:
    """Returns the reason why decoding row by row does not support these weights; None if it does."""
    for weight in weights:
        if weight.packed.ndim != weight.ndim:
            return f"rows of {weight.shape[1]} do not end with a block of {weight.block_size}"
        if reason := rows_cpu.unsupported_reason(weight.shape[0]):
            return reason
    return None


def table_matmul(x: jax.Array, weight: QuantizedTensor) -> jax.Array:
    """Returns x [..., in] @ weight.T by tables, in float32."""
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    if len(rows) == 1:
        y = _vector_product(rows[0], weight)
    else:
        y = jax.lax.map(lambda row: _vector_product(row, weight), rows)
    return y.reshape(*x.shape[:-1], -1).astype(x.dtype)


def _vector_product(x, weight):
    packed, scales = weight.transposed.packed, weight.transposed.scales
    out = packed.shape[-1]
    # A step adds `_LOOKUPS` bytes up, a turn takes `count` steps side by side.
    steps = packed.size // (_LOOKUPS * out)
    steps_per_block = steps // len(scales)
    count = _steps_per_turn(steps, steps_per_block, out)
    turns, blocks = steps // count, max(count // steps_per_block, 1)
    even, odd = x[::2].reshape(-1, 1, 1), x[1::2].reshape(-1, 1, 1)
    code = weight.code
    tables = even * code.reshape(1, -1, 1) + odd * code.reshape(1, 1, -1)
    tables = tables.reshape(turns, count, _LOOKUPS, 256)
    packed = packed.reshape(turns, count, _LOOKUPS, out)

    def at(array, turn, i):
        # A slice per use, which XLA fuses; of one for all uses it would make a copy.
        size = array.shape[-1]
        part = jax.lax.dynamic_slice(array, (turn, 0, i, 0), (1, count, 1, size))
        return part.reshape(count, size)

    def look_up(turn, i):
        # Not by `take_along_axis`, which would make the bytes signed and ask for negative ones.
        return jax.lax.gather(
            at(tables, turn, i),
            at(packed, turn, i)[..., None],
            _BY_ROW,
            slice_sizes=(1, 1),
            mode="promise_in_bounds",
        )

    def add(turn, y):
        first = turn * count // steps_per_block
        scale = jax.lax.dynamic_slice(scales, (first, 0), (blocks, out))
        part = _pairwise_sum([look_up(turn, i) for i in range(_LOOKUPS)])
        return y + part * jnp.repeat(scale, count // blocks, axis=0)

    return jnp.sum(rows_cpu.loop_on_all_cores(turns, add, jnp.zeros((count, out))), axis=0)


def _steps_per_turn(steps, steps_per_block, out):
    """Returns the least that make `_TURN` sums: a part of a block, or whole ones.

    There are two turns at least: of one, XLA would compute the tables anew for every look-up.
    """
    counts = [
        n
        for n in range(1, steps // 2 + 1)
        if steps % n == 0 and (n % steps_per_block == 0 or steps_per_block % n == 0)
    ]
    return next((n for n in counts if n * out >= _TURN), counts[-1])


def _pairwise_sum(terms):
    while len(terms) > 1:
        terms = [a + b for a, b in zip(terms[::2], terms[1::2], strict=True)]
    return terms[0]


def decoded_matmul(x: jax.Array, weight: QuantizedTensor) -> jax.Array:
    """Returns x [..., in] @ weight.T with the values beside the weight."""
    values = weight.decoded
    return dense_matmul(x.astype(values.dtype), values, dtype=jnp.float32).astype(x.dtype)


def rows_matmul(x: jax.Array, weight: QuantizedTensor) -> jax.Array:
    """Returns x [..., in] @ weight.T with a few rows of the weight decoded at a time; see
    `rows_cpu.matmul`.

    Even and odd inputs are multiplied apart: interleaving the halves of the bytes is what decoding
    would otherwise spend its time on.
    """
    scales = decode_scales(weight)

    def decode(begin, count):
        codes = jax.lax.dynamic_slice_in_dim(weight.packed, begin, count)
        scale = jax.lax.dynamic_slice_in_dim(scales, begin, count)
        scale = jnp.repeat(scale, weight.block_size // 2, axis=1)
        return weight.code[codes >> 4] * scale, weight.code[codes & 15] * scale

    return rows_cpu.matmul(x, weight.shape[0], decode, parts=2).astype(x.dtype)


def _has_rows(weight):
    """Returns whether this is a linear layer's weight on one device, whose rows are whole blocks."""
    return weight.ndim == weight.packed.ndim == 2 and len(weight.packed.devices()) == 1


def _is_to_be_transposed(leaf):
    return is_packed(leaf) and leaf.transposed is None and _has_rows(leaf)


def _is_to_be_decoded(leaf):
    return is_packed(leaf) and leaf.decoded is None and _has_rows(leaf)


def _add_transposed(leaf):
    if not _is_to_be_transposed(leaf):
        return leaf
    out, length = leaf.packed.shape
    count = min(_BYTES, leaf.block_size // 2)
    # The host hands over a view in another order; on its way to the device it is copied once.
    by_row = np.asarray(leaf.packed).reshape(out, length // count, count)
    device = leaf.packed.sharding
    return leaf.replace(
        transposed=TransposedCopy(
            packed=jax.device_put(by_row.transpose(1, 2, 0), device),
            scales=jax.device_put(dequantize_scales(leaf).T, device),
        )
    )
