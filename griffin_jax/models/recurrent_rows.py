"""One token of many rows through the middle of a recurrent block, in one launch."""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from griffin_jax.devices import current_mesh
from griffin_jax.kernels.mosaic_gpu import backend
from griffin_jax.models.state import Timeline

_FEWEST = 16
_CHANNELS = 64  # of a block of threads
_LARGEST_HEAD = 256  # what shared memory holds
_TAPS = 4


def unsupported_reason(params: dict, u: jax.Array, state: Any) -> str | None:
    """Returns why the kernel does not support these arguments of `recurrent_rows`; None if it does."""
    if reason := backend.missing():
        return reason
    batch, time, _ = u.shape
    if time != 1:
        return f"{time} tokens are more than one"
    if batch < _FEWEST:
        return f"{batch} rows are fewer than {_FEWEST}, of which layers are as fast"
    if batch > 64 and batch % 64:
        return f"{batch} rows are no multiple of 64"
    if batch < 64 and batch & (batch - 1):
        return f"{batch} rows are no power of two"
    if current_mesh() is not None:
        return "it runs on one device"
    kinds = {leaf.dtype for leaf in jax.tree.leaves(params)} | {u.dtype, state.conv.dtype}
    if kinds != {jnp.dtype(jnp.bfloat16)}:
        return f"it computes in bfloat16, not {', '.join(sorted(map(str, kinds)))}"
    size = params["rg_lru"]["a_gate"]["weight"].shape[-1]
    if size % _CHANNELS or size > _LARGEST_HEAD:
        return f"heads of {size} channels (needs a multiple of 64, at most 256)"
    taps = params["conv_1d"]["weight"].shape[0]
    return None if taps <= _TAPS else f"a convolution over {taps} tokens"


def recurrent_rows(
    reference: Callable,
    params: dict,
    y: jax.Array,
    u: jax.Array,
    state: Any,
    timeline: Timeline,
    *,
    interpret=False,
) -> tuple[jax.Array, Any]:
    """gelu(y) * rg_lru(conv(u)) for one token of each row, and the state after.

    Args:
      reference: The same without this kernel, whose gradient is taken, a function of the next five.
      params: The parameters of conv_1d and rg_lru.
      y: [B, 1, R].
      u: [B, 1, R].
      state: A `RecurrentState` of B rows.
      timeline: The timeline of one token.
      interpret: Parameters of Pallas' interpreter, or False.
    """

    @jax.custom_vjp
    def step(params, y, u, state, timeline):
        return _run(params, y, u, state, timeline, interpret)

    def forward(*arguments):
        return step(*arguments), arguments

    def backward(arguments, gradients):
        return jax.vjp(reference, *arguments)[1](gradients)

    step.defvjp(forward, backward)
    return step(params, y, u, state, timeline)


def _run(params, y, u, state, timeline, interpret):
    kernel = importlib.import_module("griffin_jax.kernels.mosaic_gpu.recurrent_kernel")

    def pair(layer):
        return layer["weight"], layer["bias"]

    unit = params["rg_lru"]
    z, hidden, conv = kernel.recurrent_step(
        u[:, 0],
        y[:, 0],
        state.conv,
        state.hidden,
        pair(params["conv_1d"]),
        [pair(unit["input_gate"]), pair(unit["a_gate"])],
        unit["a_param"],
        jnp.where(timeline.lengths > 0, timeline.positions[:, 0], -1),
        interpret=interpret,
    )
    return z[:, None], state.replace(hidden=hidden, conv=conv)
