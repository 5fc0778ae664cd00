"""A gated MLP whose weights are in 4 bits: what is between its products is part of the first."""

from collections.abc import Callable

import jax

from griffin_jax.devices import current_mesh
from griffin_jax.kernels import packed_matmul_mosaic_gpu as mosaic
from griffin_jax.quantization.tensor import is_packed

_LAYERS = ("gate_proj", "up_proj", "down_proj")


def unsupported_reason(params: dict, x: jax.Array) -> str | None:
    """Returns why the kernel does not support these arguments of `packed_mlp`; None if it does."""
    weights = [params[name]["weight"] for name in _LAYERS]
    if not all(map(is_packed, weights)):
        return "weights that are not in 4 bits"
    if current_mesh() is not None:
        return "it runs on one device"
    *gated, down = weights
    return mosaic.unsupported_reason(x, gated) or mosaic.gated_fits(*gated) or mosaic.fits([down])


def packed_mlp(reference: Callable, params: dict, x: jax.Array, *, interpret=False) -> jax.Array:
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
    gate, up, down = (params[name] for name in _LAYERS)
    biases = [layer["bias"] for layer in (gate, up) if layer.get("bias") is not None]
    rows = x.reshape(-1, x.shape[-1])
    weights = gate["weight"], up["weight"]
    h = mosaic.gated_matmul(rows, *weights, biases, interpret, following=down["weight"])
    [y] = mosaic.multiply_operand(h, [down["weight"]], x.dtype, interpret)
    y = y[: len(rows)].reshape(*x.shape[:-1], -1)
    if down.get("bias") is None:
        return y
    return y + jax.lax.broadcast_to_rank(down["bias"].astype(y.dtype), y.ndim)
