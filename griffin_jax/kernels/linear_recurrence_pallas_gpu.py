"""The diagonal linear recurrence as one Pallas kernel forward and one backward, for GPUs.

In float32 the forward pass moves 12 bytes per element and the backward pass 20, which is what the
arguments and results weigh; times that are not whole chunks of 128 forward, 64 backward, add copies
with zeros behind the last step. See `time_chunks_gpu`.
"""

import functools

import jax
import jax.numpy as jnp

from griffin_jax.kernels import time_chunks_gpu
from griffin_jax.kernels.time_chunks_gpu import Chunks, mapped_as_rows

_FORWARD = {"groups": 8, "steps": 16}
_BACKWARD = {"groups": 8, "steps": 8}


def unsupported_reason(shape: tuple[int, ...], dtype: jnp.dtype) -> str | None:
    """Returns why inputs [B, T, R] of this shape and dtype are not supported; None if they are."""
    if dtype != jnp.float32:
        return f"the inputs are {dtype}, not float32"
    return time_chunks_gpu.unsupported_reason(shape, _FORWARD["steps"])


def forward(x: jax.Array, a: jax.Array, h0: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Computes `griffin_jax.kernels.linear_recurrence.linear_recurrence_reference`.

    Args:
      x: float32[B, T, R].
      a: float32[B, T, R].
      h0: float32[B, R].
      interpret: Run on any device, slowly, for tests.
    """
    return _forward(interpret)(x, a, h0)


def backward(
    a: jax.Array, h0: jax.Array, h: jax.Array, dh: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of x, a and h0, of the result h and its gradient dh, float32[B, T,
    R].
    """
    return _backward(interpret)(a, h0, h, dh)


@functools.cache
def _forward(interpret):
    @mapped_as_rows
    @jax.jit
    def call(x, a, h0):
        time = x.shape[1]
        x, a = _in_whole_chunks(x, a, **_FORWARD)
        chunks = Chunks(x.shape, **_FORWARD, interpret=interpret)
        inputs = [(chunks.tile, chunks.split(v)) for v in (x, a)]
        (h,), _ = chunks(_forward_kernel, inputs, [chunks.like(x)], h0)
        return h.reshape(x.shape)[:, :time]

    return call


@functools.cache
def _backward(interpret):
    @mapped_as_rows
    @jax.jit
    def call(a, h0, h, dh):
        time = a.shape[1]
        a, h, dh = _in_whole_chunks(a, h, dh, **_BACKWARD)
        chunks = Chunks(a.shape, **_BACKWARD, backward=True, interpret=interpret)
        inputs = [(chunks.tile, chunks.split(v)) for v in (a, dh)]
        inputs += [(chunks.times, h), (chunks.state, h0)]
        (dx, da), dh0 = chunks(_backward_kernel, inputs, [chunks.like(a)] * 2, jnp.zeros_like(h0))
        return *(v.reshape(a.shape)[:, :time] for v in (dx, da)), dh0

    return call


def _forward_kernel(chunk, x_ref, a_ref, h_ref):
    x, a = chunk.load(x_ref), chunk.load(a_ref)
    chunk.store(h_ref, chunk.forward(a, x))


def _backward_kernel(chunk, a_ref, dh_ref, h_ref, h0_ref, dx_ref, da_ref):
    a, dh = chunk.load(a_ref), chunk.load(dh_ref)
    before = chunk.load_before(h_ref, h0_ref[chunk.lanes])
    dx = chunk.backward(a, dh)
    chunk.store(dx_ref, dx)
    chunk.store(da_ref, [g * h for g, h in zip(dx, before, strict=True)])


def _in_whole_chunks(*arrays, groups, steps):
    """Zeros behind the last step change nothing before them, forward or backward."""
    missing = -arrays[0].shape[1] % (groups * steps)
    return (jnp.pad(v, ((0, 0), (0, missing), (0, 0))) for v in arrays)
