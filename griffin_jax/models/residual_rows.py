"""One token of many rows through a residual block, whose sums and norms are one launch each.

What a half adds to the residual stream is left in the parts that its last product comes in, until
the next norm adds them up; so a block returns, and takes, a residual stream that is not added up.
"""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from griffin_jax.config import GriffinConfig
from griffin_jax.devices import current_mesh
from griffin_jax.kernels import dense_matmul_mosaic_gpu as dense
from griffin_jax.kernels import packed_matmul_mosaic_gpu as mosaic
from griffin_jax.kernels.mosaic_gpu import backend
from griffin_jax.models import gated_mlp
from griffin_jax.quantization.tensor import is_packed

_WIDTHS = 512  # of which the residual stream's width is a multiple


@flax.struct.dataclass
class ResidualStream:
    """A residual stream to which something is still to be added.

    Attributes:
      x: [B, 1, D], the stream before.
      parts: [P, m, D] in float32 or the type of x, whose sum over P is added; m is at least B, and
        what is beyond B does not count. None for nothing.
      bias: [D], which is added, too, or None.
    """

    x: jax.Array
    parts: jax.Array | None = None
    bias: jax.Array | None = None

    def added_up(self) -> jax.Array:
        """Returns the stream, [B, 1, D], rounded once."""
        total = self.x.astype(jnp.float32)
        if self.parts is not None:
            total += self.parts[:, : len(total)].astype(jnp.float32).sum(axis=0)[:, None]
        if self.bias is not None:
            total += jax.lax.broadcast_to_rank(self.bias.astype(jnp.float32), total.ndim)
        return total.astype(self.x.dtype)


def added_up(x: jax.Array | ResidualStream) -> jax.Array:
    """Returns a residual stream as an array."""
    return x.added_up() if isinstance(x, ResidualStream) else x


def shape_of(x: jax.Array | ResidualStream) -> jax.ShapeDtypeStruct:
    """Returns what `added_up` would return an array of."""
    array = x.x if isinstance(x, ResidualStream) else x
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


@dataclasses.dataclass(frozen=True)
class RowsStep:
    """What a kind of temporal mixing brings for its residual block to take these launches.

    Attributes:
      first: The names of the linear layers that read the norm, children of its own.
      last: The name of the linear layer that writes to the residual stream.
      to_kernel: Whether a kernel reads what the first layers make, and adds no parts of it up.
      unsupported_reason: (config, params, x [B, T, D], state, timeline) -> None, or why `between` does
        not serve.
      between: (config, params, products, state, timeline, operand=, interpret=) -> what the last layer
        reads, and the state after. `products` are those of the first layers, [B, out] each without
        their biases; with `operand` products with 4-bit weights read the result, see
        `kernels.mosaic_gpu.operand`.
    """

    first: tuple[str, ...]
    last: str
    to_kernel: bool
    unsupported_reason: Callable[..., str | None]
    between: Callable[..., tuple[jax.Array, Any]]


def unsupported_reason(
    config: GriffinConfig,
    step: RowsStep | None,
    name: str,
    params: dict,
    x: jax.ShapeDtypeStruct,
    state: Any,
    timeline: Any,
) -> str | None:
    """Says why the kernels do not serve these arguments of `residual_rows`; None if they do."""
    if reason := backend.missing():
        return reason
    if step is None:
        return "its kind of temporal mixing has no step of rows"
    if x.shape[1] != 1:
        return f"{x.shape[1]} tokens are more than one"
    if x.dtype != jnp.bfloat16:
        return f"it computes in bfloat16, not {x.dtype}"
    if current_mesh() is not None:
        return "it runs on one device"
    if config.width % _WIDTHS:
        return f"a width of {config.width} (needs a multiple of {_WIDTHS})"
    mixing = params[name]
    last = mixing[step.last]["weight"]
    hidden = jax.ShapeDtypeStruct((*x.shape[:-1], last.shape[1]), x.dtype)
    return (
        _unread(x, [mixing[layer]["weight"] for layer in step.first])
        or _unread(hidden, [last])
        or step.unsupported_reason(config, mixing, x, state, timeline)
        or gated_mlp.unsupported_reason(params["mlp_block"], x)
    )


def _unread(x, weights):
    if all(map(is_packed, weights)):
        return mosaic.unsupported_reason(x, weights)
    if all(isinstance(weight, jax.Array) for weight in weights):
        return dense.unsupported_reason(x, weights)
    return "weights that are neither all in 4 bits nor all arrays"


def residual_rows(
    config: GriffinConfig,
    step: RowsStep,
    name: str,
    reference: Callable,
    params: dict,
    x: jax.Array | ResidualStream,
    state: Any,
    timeline: Any,
    *,
    interpret=False,
) -> tuple[ResidualStream, Any]:
    """Runs a residual block for one token of each row.

    Args:
      config: The model's shape.
      step: The way of the block's temporal mixing.
      name: What the temporal mixing's parameters are called in the block's.
      reference: The same without these kernels, whose gradient is taken, a function of the next four
        that returns an array.
      params: The block's parameters.
      x: [B, 1, D], the residual stream, added up or not.
      state: The block's state.
      timeline: The timeline of one token.
      interpret: Parameters of Pallas' interpreter, or False.

    Returns:
      The residual stream after, which is not added up, and the state after.
    """

    @jax.custom_vjp
    def run(params, x, state, timeline):
        return _run(config, step, name, params, x, state, timeline, interpret)

    def backward(gradient, gradients):
        # What goes on depends on the stream's sum alone, whose gradient that of the first term is.
        stream, after = gradients
        return gradient((stream.x, after))

    run.defvjp(lambda *arguments: jax.vjp(reference, *arguments), backward)
    return run(params, x, state, timeline)


def _run(config, step, name, params, x, state, timeline, interpret):
    mixing, mlp = params[name], params["mlp_block"]
    stream = x if isinstance(x, ResidualStream) else ResidualStream(x)
    dtype = stream.x.dtype

    def normed(stream, norm, operand):
        return _normed(stream, params[norm]["scale"], config.norm_eps, operand, interpret)

    weights = [mixing[layer]["weight"] for layer in step.first]
    last = mixing[step.last]
    packed = is_packed(last["weight"])
    stream, read = normed(stream, "temporal_pre_norm", is_packed(weights[0]))
    following = last["weight"] if packed else None
    products = _products(read, weights, dtype, following, step.to_kernel, interpret)
    products = [y[: len(stream.x)] for y in products]
    z, state = step.between(
        config, mixing, products, state, timeline, operand=packed, interpret=interpret
    )
    if packed:
        [parts] = mosaic.product_parts(z, [last["weight"]], dtype, interpret)
    else:
        [parts] = dense.product_parts(z, [last["weight"]], interpret)
    stream = ResidualStream(stream.x, parts, last.get("bias"))

    weights, biases = gated_mlp.weights_and_biases(mlp)
    stream, read = normed(stream, "channel_pre_norm", is_packed(weights[0]))
    parts = gated_mlp.product_parts(read, weights, biases, dtype, interpret=interpret)
    return ResidualStream(stream.x, parts, mlp["down_proj"].get("bias")), state


def _normed(stream, scale, eps, operand, interpret):
    """Returns the stream added up, and its norm [B, D] or an operand."""
    kernel = importlib.import_module("griffin_jax.kernels.mosaic_gpu.norm_kernel")
    x, read = kernel.add_and_norm(
        stream.x[:, 0],
        stream.parts,
        stream.bias,
        scale,
        eps=eps,
        operand=operand,
        interpret=interpret,
    )
    return ResidualStream(x[:, None]), read


def _products(
    x: jax.Array,
    weights: Sequence[Any],
    dtype: Any,
    following: Any,
    to_kernel: bool,
    interpret: Any,
) -> Sequence[jax.Array]:
    if is_packed(weights[0]):
        return mosaic.multiply_operand(
            x, weights, dtype, interpret, following, to_kernel=to_kernel
        )
    return dense.dense_matmuls(x, tuple(weights), to_kernel, interpret)
