"""A gated MLP in two products: what is between them is part of the first.

Its weights are in 4 bits, or, for one token of few rows, in 16.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.typing import DTypeLike

from griffin_jax.devices import MODEL, current_mesh, model_shards, on_parts, part_of
from griffin_jax.kernels import dense_matmul_mosaic_gpu as dense
from griffin_jax.kernels import packed_matmul_mosaic_gpu as mosaic
from griffin_jax.kernels.mosaic_gpu import backend
from griffin_jax.kernels.mosaic_gpu.operand import operand
from griffin_jax.kernels.mosaic_gpu.sharing_out import added_up
from griffin_jax.quantization.tensor import is_packed

_LAYERS = ("gate_proj", "up_proj", "down_proj")


def unsupported_reason(params: dict, x: jax.Array) -> str | None:
    """Returns why the kernel does not support these arguments of `gated_mlp`; None if it does."""
    if reason := backend.missing():
        return reason
    weights = [params[name]["weight"] for name in _LAYERS]
    if all(isinstance(weight, jax.Array) for weight in weights):
        return _dense_unsupported(x, weights)
    if not all(map(is_packed, weights)):
        return "weights that are neither all in 4 bits nor all arrays"
    if weights[0].shape[0] % model_shards():
        return f"{weights[0].shape[0]} features do not divide over {model_shards()} devices"
    *gated, down = _parts(part_of(jax.eval_shape(_divisible, weights), _names(weights)))
    return (
        mosaic.unsupported_reason(x, gated)
        or mosaic.gated_fits(*gated)
        or mosaic.fits([down])
        or mosaic.decoded_first(x)
    )


def _dense_unsupported(x, weights):
    *gated, down = weights
    if x.ndim != 3 or x.shape[1] != 1:
        return f"it multiplies one token of each row by 16-bit weights, not {[*x.shape]}"
    if current_mesh() is not None:
        return "it multiplies by 16-bit weights on one device"
    hidden = jax.ShapeDtypeStruct((*x.shape[:-1], down.shape[1]), x.dtype)
    served = dense.unsupported_reason(x, gated) or dense.unsupported_reason(hidden, [down])
    return served or dense.gated_fits(*gated)


def gated_mlp(reference: Callable, params: dict, x: jax.Array, *, interpret=False) -> jax.Array:
    """Computes down(gelu(gate(x)) * up(x)) in two products, [..., D].

    Args:
      reference: The same without these kernels, whose gradient is taken, a function of the next two.
      params: The parameters of the layers gate_proj, up_proj and down_proj.
      x: [..., D].
      interpret: Parameters of Pallas' interpreter, or False.
    """

    @jax.custom_vjp
    def run(params, x):
        return _run(params, x, interpret)

    def backward(gradient, dy):
        return gradient(dy)

    run.defvjp(lambda *arguments: jax.vjp(reference, *arguments), backward)
    return run(params, x)


def _run(params, x, interpret):
    weights, biases = weights_and_biases(params)
    down = params["down_proj"]
    run = functools.partial(_on_one_device, interpret=interpret)
    if current_mesh() is None:
        y = run(x, weights, biases)
    else:
        names = ("batch", "time", None)
        features = [("features",)] * len(biases)
        y = on_parts(
            lambda x, weights, biases: jax.lax.psum(run(x, _parts(weights), biases), MODEL),
            (x, _divisible(weights), biases),
            (names, _names(weights), features),
            (x.shape, names),
        )
    if down.get("bias") is None:
        return y
    return y + jax.lax.broadcast_to_rank(down["bias"].astype(y.dtype), y.ndim)


def weights_and_biases(params: dict) -> tuple[list, list[jax.Array]]:
    """Returns the weights of gate, up and down, and the biases of gate and up, if they have some."""
    layers = [params[name] for name in _LAYERS]
    biases = [layer["bias"] for layer in layers[:2] if layer.get("bias") is not None]
    return [layer["weight"] for layer in layers], biases


def _on_one_device(x, weights, biases, *, interpret):
    rows = x.reshape(-1, x.shape[-1])
    read = operand(rows) if is_packed(weights[0]) else rows
    parts = product_parts(read, weights, biases, x.dtype, interpret=interpret)
    return added_up(parts)[: len(rows)].astype(x.dtype).reshape(*x.shape[:-1], -1)


def product_parts(
    x: jax.Array,
    weights: Sequence[Any],
    biases: Sequence[jax.Array],
    dtype: DTypeLike,
    *,
    interpret=False,
) -> jax.Array:
    """Computes down(gelu(gate(x)) * up(x)) without down's bias on one device.

    Args:
      x: [n, D], or an operand of products with 4-bit weights where these are in 4 bits.
      weights: Those of gate, up and down.
      biases: Those of gate and up, or none.
      dtype: The dtype of activations.
      interpret: Parameters of Pallas' interpreter, or False.

    Returns:
      float32[parts, m, D], which are to be added up, or one part in `dtype`; m is at least n.
    """
    gate, up, down = weights
    if is_packed(down):
        h = mosaic.gated_matmul(x, gate, up, biases, interpret, following=down)
        [parts] = mosaic.product_parts(h, [down], dtype, interpret)
    else:
        h = dense.gated_matmul(x, gate, up, biases, interpret)
        [parts] = dense.product_parts(h, [down], interpret)
    return parts


def _names(weights):
    """Returns what dimensions are of the weights, in a form that a mesh divides."""
    sides = ("features", None), ("features", None), (None, "features")
    divisible = jax.eval_shape(_divisible, weights)
    return [weight.axes(axes) for weight, axes in zip(divisible, sides, strict=True)]


def _divisible(weights):
    return weights if current_mesh() is None else [weight.divisible() for weight in weights]


def _parts(weights):
    return [weight.part() for weight in weights]
