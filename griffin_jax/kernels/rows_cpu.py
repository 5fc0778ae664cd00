"""Products on a CPU with a weight that is decoded a few rows at a time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from griffin_jax.kernels.dense_matmul import bfloat16_matmul, dense_matmul, has_bfloat16

# Rows of a weight that are decoded at a time, so that they stay in the cache.
FEW, _MANY = 64, 256

Decode = Callable[[jax.Array, int], tuple[jax.Array, ...]]


def unsupported_reason(out: int) -> str | None:
    """Returns None, or why a weight of so many outputs is not served."""
    return f"{out} rows are not a multiple of {FEW}" if out % FEW else None


def matmul(x: jax.Array, out: int, decode: Decode, parts: int = 1) -> jax.Array:
    """Returns x [..., in] @ weight.T, float32[..., out], decoding a few rows of the weight at a time.

    In bfloat16 if x is and the processor multiplies it, otherwise in float32, which is then faster
    and rounds less. Every turn takes rows that lie together and puts what they give into its place:
    rows from all over the weight would have the whole result put in order after the last turn.

    Args:
      x: Activations.
      out: Rows of the weight.
      decode: (first, count) -> the numbers of so many rows, in `parts` arrays [count, in / parts].
      parts: The first array has the inputs 0, parts, 2 parts, ..., the next the inputs 1, parts + 1,
        ...: to put them in order may take longer than to multiply them apart.
    """
    short = x.size == x.shape[-1]
    bfloat16 = x.dtype == jnp.bfloat16 and has_bfloat16() and not short
    inputs = x.reshape(-1, x.shape[-1]).astype(jnp.bfloat16 if bfloat16 else jnp.float32)
    inputs = [inputs[:, i::parts] for i in range(parts)]
    count = FEW if short or out % _MANY else _MANY

    def multiply(x, values):
        values = values.astype(x.dtype)
        if bfloat16:
            return bfloat16_matmul(x, values, jnp.dtype(jnp.float32))
        return dense_matmul(x, values)

    @jax.checkpoint
    def rows(begin):
        return functools.reduce(jnp.add, map(multiply, inputs, decode(begin, count)))

    def turn(index, y):
        return jax.lax.dynamic_update_slice(y, rows(index * count), (0, index * count))

    # In float32 to the end: XLA's CPU compiler updates a bfloat16 array by way of a float32 copy.
    y = jnp.zeros((len(inputs[0]), out), jnp.float32)
    y = loop_on_all_cores(out // count, turn, y)
    return y.reshape(*x.shape[:-1], out)


def loop_on_all_cores(turns: int, body: Callable[[jax.Array, Any], Any], start: Any) -> Any:
    """Runs `jax.lax.fori_loop` from 0 on, each turn of which the cores share.

    The CPU compiler of jax 0.12 makes a single kernel, which runs on one core, of any loop of plain
    operations: it means small loops, and takes each for one. A loop with a sort it leaves alone,
    so the turn's number is sorted beside itself, which takes a microsecond.
    """

    def turn(index, carry):
        index = jax.lax.sort(jnp.stack([index, index]))[0]
        return body(index, carry)

    return jax.lax.fori_loop(0, turns, turn, start)
