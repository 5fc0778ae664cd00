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
from griffin_jax.layer_of import LayerOf
from griffin_jax.models import gated_mlp
from griffin_jax.models.state import Timeline
from griffin_jax.quantization.tensor import is_packed

_MOST_ROWS = 64  # of weights whose products are the compiler's beyond
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
    """What a kind of temporal mixing brings for its first products to read what the norm's launch
    writes, and for the next norm's launch to add up its last one.

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
    params: dict, x: jax.ShapeDtypeStruct, state: Any, timeline: Timeline
) -> str | None:
    """Says why the kernels do not serve these arguments of `residual_rows`; None if they do."""
    if reason := backend.missing():
        return reason
    rows, time, width = x.shape
    if time != 1:
        return f"{time} tokens are more than one"
    packed = any(map(is_packed, jax.tree.leaves(params, is_leaf=is_packed)))
    if rows > _MOST_ROWS and not packed:
        return f"{rows} rows of weights that are not in 4 bits (needs at most {_MOST_ROWS})"
    if timeline.open:
        return "which tokens count is not known yet"
    if isinstance(state, LayerOf):
        return "stacked layers"
    if x.dtype != jnp.bfloat16:
        return f"it computes in bfloat16, not {x.dtype}"
    if current_mesh() is not None:
        return "it runs on one device"
    if width % _WIDTHS:
        return f"a width of {width} (needs a multiple of {_WIDTHS})"
    return None


def residual_rows(
    config: GriffinConfig,
    step: RowsStep | None,
    name: str,
    reference: Callable,
    halves: tuple[Callable, Callable],
    params: dict,
    x: jax.Array | ResidualStream,
    state: Any,
    timeline: Timeline,
    *,
    interpret=False,
) -> tuple[ResidualStream, Any]:
    """Runs a residual block for one token of each row.

    Args:
      config: The model's shape.
      step: The way of the block's temporal mixing, if it has one.
      name: What the temporal mixing's parameters are called in the block's.
      reference: The same without these kernels, whose gradient is taken, a function of `params`, `x`,
        `state` and `timeline` that returns an array.
      halves: The temporal mixing, (params, x, state, timeline) -> (y, state), and the MLP, (params, x)
        -> y, which are called where their products do not read what the norms' launches write.
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
        stream = x if isinstance(x, ResidualStream) else ResidualStream(x)
        block = _Block(config, step, halves, interpret)
        stream, state = block.mix(params, params[name], stream, state, timeline)
        return block.multiply(params, params["mlp_block"], stream), state

    def forward(*arguments):
        return run(*arguments), arguments

    def backward(arguments, gradients):
        # What goes on depends on the stream's sum alone, whose gradient that of the first term is.
        stream, after = gradients
        return jax.vjp(reference, *arguments)[1]((stream.x, after))

    run.defvjp(forward, backward)
    return run(params, x, state, timeline)


@dataclasses.dataclass(frozen=True)
class _Block:
    config: GriffinConfig
    step: RowsStep | None
    halves: tuple[Callable, Callable]
    interpret: Any

    def mix(self, params, mixing, stream, state, timeline):
        """Returns the stream after the temporal mixing, not added up, and the state after."""
        like = shape_of(stream)
        step, dtype = self.step, like.dtype
        if step is None or self._mixing_apart(mixing, like, state, timeline):
            stream, x = self._norm(stream, params["temporal_pre_norm"], False)
            y, state = self.halves[0](mixing, x[:, None], state, timeline)
            return ResidualStream(stream.x, y[None, :, 0]), state
        weights, last = [mixing[layer]["weight"] for layer in step.first], mixing[step.last]
        packed = is_packed(last["weight"])
        stream, read = self._norm(stream, params["temporal_pre_norm"], is_packed(weights[0]))
        if is_packed(weights[0]):
            # Between keys and values that are read, the second-level cache would keep nothing.
            following = last["weight"] if packed and step.to_kernel else None
            products: Sequence[jax.Array] = mosaic.multiply_operand(
                read, weights, dtype, self.interpret, following, to_kernel=step.to_kernel
            )
        else:
            products = dense.dense_matmuls(read, tuple(weights), step.to_kernel, self.interpret)
        products = [y[: like.shape[0]] for y in products]
        options = {"operand": packed, "interpret": self.interpret}
        z, state = step.between(self.config, mixing, products, state, timeline, **options)
        if packed:
            [parts] = mosaic.product_parts(z, [last["weight"]], dtype, self.interpret)
        else:
            [parts] = dense.product_parts(z, [last["weight"]], self.interpret)
        return ResidualStream(stream.x, parts, last.get("bias")), state

    def multiply(self, params, mlp, stream):
        """Returns the stream after the MLP, not added up."""
        like = shape_of(stream)
        if not self.interpret and gated_mlp.unsupported_reason(mlp, like):
            stream, x = self._norm(stream, params["channel_pre_norm"], False)
            return ResidualStream(stream.x, self.halves[1](mlp, x[:, None])[None, :, 0])
        weights, biases = gated_mlp.weights_and_biases(mlp)
        stream, read = self._norm(stream, params["channel_pre_norm"], is_packed(weights[0]))
        parts = gated_mlp.product_parts(read, weights, biases, like.dtype, interpret=self.interpret)
        return ResidualStream(stream.x, parts, mlp["down_proj"].get("bias"))

    def _mixing_apart(self, mixing, x, state, timeline):
        """Returns why the temporal mixing is called as it is; None where its products are."""
        if self.interpret:
            return None
        last = mixing[self.step.last]["weight"]
        hidden = jax.ShapeDtypeStruct((*x.shape[:-1], last.shape[1]), x.dtype)
        return (
            _unread(x, [mixing[layer]["weight"] for layer in self.step.first])
            or _unread(hidden, [last])
            or self.step.unsupported_reason(self.config, mixing, x, state, timeline)
        )

    def _norm(self, stream, norm, operand):
        """Returns the stream added up, and its norm [B, D] or an operand."""
        kernel = importlib.import_module("griffin_jax.kernels.mosaic_gpu.norm_kernel")
        x, read = kernel.add_and_norm(
            stream.x[:, 0],
            stream.parts,
            stream.bias,
            norm["scale"],
            eps=self.config.norm_eps,
            operand=operand,
            interpret=self.interpret,
        )
        return ResidualStream(x[:, None]), read


def _unread(x, weights):
    """Returns None, or why products of x with these weights are left to their layers."""
    if all(map(is_packed, weights)):
        return mosaic.unsupported_reason(x, weights)
    if all(isinstance(weight, jax.Array) for weight in weights):
        return dense.unsupported_reason(x, weights)
    return "weights that are neither all in 4 bits nor all arrays"
