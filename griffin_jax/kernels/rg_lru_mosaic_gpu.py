"""The RG-LRU on Hopper GPUs, one launch forward and one backward, through Pallas' Mosaic backend."""

import importlib

import jax
import jax.numpy as jnp

from griffin_jax.kernels import rg_lru_pallas_gpu, time_chunks_gpu
from griffin_jax.kernels.mosaic_gpu import backend
from griffin_jax.kernels.time_chunks_gpu import mapped_as_rows

_CHANNELS = 64  # of a block of threads
_FEWEST_TOKENS = 8  # of fewer a chunk of 128 would be mostly padding


def unsupported_reason(*inputs: jax.Array) -> str | None:
    """Returns None, or why the kernel does not serve x and the gates before their sigmoids [B, T, R]."""
    if reason := backend.missing():
        return reason
    if any(v.dtype != jnp.bfloat16 for v in inputs):
        return f"it takes bfloat16, not {', '.join(str(v.dtype) for v in inputs)}"
    if inputs[0].shape[-1] % _CHANNELS:
        return f"recurrence width {inputs[0].shape[-1]} is not a multiple of {_CHANNELS}"
    return time_chunks_gpu.unsupported_shape(inputs[0].shape, _FEWEST_TOKENS)


def rg_lru(x, gate_x, gate_a, a_param, hidden, positions, lengths):
    """Computes `griffin_jax.kernels.rg_lru.rg_lru_reference` of inputs in bfloat16."""
    slope = rg_lru_pallas_gpu.slope_of(a_param)
    return _recurrence(x, gate_x, gate_a, slope, hidden, positions, lengths)


@jax.custom_vjp
def _recurrence(*arguments):
    return _forward(*arguments)


def _forward_rule(*arguments):
    h, last = _forward(*arguments)
    return (h, last), (*arguments, h)


def _backward_rule(residuals, gradients):
    return *_backward(*residuals, *gradients), None, None


_recurrence.defvjp(_forward_rule, _backward_rule)


@mapped_as_rows
def _forward(*arguments):
    return _kernel().forward(*arguments)


@mapped_as_rows
def _backward(*arguments):
    return _kernel().backward(*arguments)


def _kernel():
    return importlib.import_module("griffin_jax.kernels.mosaic_gpu.rg_lru_kernel")
