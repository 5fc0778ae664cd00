"""One token of many rows through a recurrent block, whose middle is one launch."""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from griffin_jax.devices import MODEL, current_mesh, model_shards, on_parts, part_of
from griffin_jax.kernels import dense_matmul_mosaic_gpu as dense
from griffin_jax.kernels import packed_matmul_mosaic_gpu as mosaic
from griffin_jax.kernels.mosaic_gpu import backend
from griffin_jax.kernels.mosaic_gpu.operand import operand
from griffin_jax.models.linear import few_rows_unsupported, matmuls
from griffin_jax.models.residual_rows import RowsStep
from griffin_jax.models.state import Timeline
from griffin_jax.quantization.tensor import QuantizedTensor, is_packed
from griffin_jax.weight import format_of

BRANCHES = "linear_x", "linear_y"
_CHANNELS = 64  # of a block of threads
_LARGEST_HEAD = 256  # what shared memory holds
_TAPS = 4
# What dimensions are of the weights of its products.
_LINEARS = {
    "linear_x": ("recurrence", None),
    "linear_y": ("recurrence", None),
    "linear_out": (None, "recurrence"),
}
_ROWS = ("batch", None, None)


def unsupported_reason(params: dict, x: jax.Array, state: Any, timeline: Timeline) -> str | None:
    """Returns why the kernel does not support these arguments of `recurrent_rows`; None if it does."""
    if reason := backend.missing():
        return reason
    batch, time, _ = part_of(x, _ROWS).shape
    if time != 1:
        return f"{time} tokens are more than one"
    if batch > 64 and batch % 64:
        return f"{batch} rows are no multiple of 64"
    if 8 < batch < 64 and batch & (batch - 1):
        return f"{batch} rows are no power of two"
    if timeline.open:
        return "which tokens count is not known yet"
    heads = params["rg_lru"]["a_gate"]["weight"].shape[0]
    if heads % model_shards():
        return f"{heads} heads do not divide over {model_shards()} devices"
    kinds = {format_of(params[name]["weight"]) for name in _LINEARS}
    if current_mesh() is not None and not kinds <= {jax.Array, QuantizedTensor}:
        return "on several devices, weights that are neither arrays nor in 4 bits"
    inner = jax.tree.leaves([params["conv_1d"], params["rg_lru"]])
    kinds = {leaf.dtype for leaf in inner} | {x.dtype, state.conv.dtype}
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
    x: jax.Array,
    state: Any,
    timeline: Timeline,
    *,
    interpret=False,
) -> tuple[jax.Array, Any]:
    """Computes a recurrent block for one token of each row, and the state after.

    Args:
      reference: The same without this kernel, whose gradient is taken, a function of the next four.
      params: The block's parameters.
      x: [B, 1, D].
      state: A `RecurrentState` of B rows.
      timeline: The timeline of one token.
      interpret: Parameters of Pallas' interpreter, or False.
    """

    @jax.custom_vjp
    def step(params, x, state, timeline):
        return _run(params, x, state, timeline, interpret)

    def forward(*arguments):
        return step(*arguments), arguments

    def backward(arguments, gradients):
        return jax.vjp(reference, *arguments)[1](gradients)

    step.defvjp(forward, backward)
    return step(params, x, state, timeline)


def _run(params, x, state, timeline, interpret):
    run = functools.partial(_on_one_device, interpret=interpret)
    out = params["linear_out"]
    if current_mesh() is None:
        h, after = run(params, x, state, timeline)
    else:
        names = _names(params, state)

        def by_part(params, *arguments):
            h, after = run(_of_linears(params, lambda weight: weight.part()), *arguments)
            return jax.lax.psum(h, MODEL), after

        whole = _of_linears(params, lambda weight: weight.divisible())
        after = jax.tree.map(lambda x, dimensions: (x.shape, dimensions), state, names[2])
        results = ((*x.shape[:-1], out["weight"].shape[0]), _ROWS), after
        h, after = on_parts(by_part, (whole, x, state, timeline), names, results)
    return h + jax.lax.broadcast_to_rank(_bias(out, h), h.ndim), after


def _on_one_device(params, x, state, timeline, *, interpret):
    """Returns the product with the last weight, without its bias, and the state after."""
    out = params["linear_out"]["weight"]
    # A product with 4-bit weights reads what the kernel writes.
    packed = _packed([out])
    following = out if packed else None
    branches = [params[name]["weight"] for name in BRANCHES]
    products = [y[:, 0] for y in _branches(x, branches, following, interpret)]
    z, state = between(params, products, state, timeline, operand=packed, interpret=interpret)
    if packed:
        [h] = mosaic.multiply_operand(z, [out], x.dtype, interpret)
        h = h[: len(x), None]
    else:
        [h] = matmuls(z[:, None], [out], [None])
    return h, state


def between(
    params: dict,
    products: Sequence[jax.Array],
    state: Any,
    timeline: Timeline,
    *,
    operand: bool,
    interpret=False,
) -> tuple[jax.Array, Any]:
    """Computes what stands between the products of a block on one device, and the state after.

    Args:
      params: The block's parameters.
      products: [B, R], of the weights of `BRANCHES` without their biases.
      state: A `RecurrentState` of B rows.
      timeline: The timeline of one token.
      operand: Whether a product with 4-bit weights reads the result.
      interpret: Parameters of Pallas' interpreter, or False.

    Returns:
      What the last product reads, [B, R] or an operand, and the state after.
    """
    kernel = importlib.import_module("griffin_jax.kernels.mosaic_gpu.recurrent_kernel")

    def pair(layer):
        return layer["weight"], layer["bias"]

    u, y = products
    unit = params["rg_lru"]
    z, hidden, conv = kernel.recurrent_step(
        u,
        y,
        [_bias(params[name], u) for name in BRANCHES],
        state.conv,
        state.hidden,
        pair(params["conv_1d"]),
        [pair(unit["input_gate"]), pair(unit["a_gate"])],
        unit["a_param"],
        jnp.where(timeline.lengths > 0, timeline.positions[:, 0], -1),
        operand=operand,
        interpret=interpret,
    )
    return z, state.replace(hidden=hidden, conv=conv)


def _names(params, state):
    """Returns what dimensions are of the parameters, x, state and timeline."""
    channels = ("recurrence",)
    gate = {"weight": ("heads", None, None), "bias": ("heads", None)}
    inner = {
        "conv_1d": {"weight": (None, "recurrence"), "bias": channels},
        "rg_lru": {"a_gate": gate, "input_gate": gate, "a_param": channels},
    }

    def linear(layer, axes):
        weight = layer["weight"]
        names = weight.divisible().axes(axes) if is_packed(weight) else axes
        return {"weight": names} | ({"bias": (axes[0],)} if "bias" in layer else {})

    linears = {name: linear(params[name], axes) for name, axes in _LINEARS.items()}
    row = ("batch",)
    timeline = Timeline(positions=("batch", None), lengths=row, start=row)
    return linears | inner, _ROWS, state.axes(), timeline


def _of_linears(params, change):
    """Returns the parameters with every packed weight changed."""
    return jax.tree.map(lambda x: change(x) if is_packed(x) else x, params, is_leaf=is_packed)


def _packed(weights):
    """Returns whether these are 4-bit weights that a product of its own kernel reads."""
    if not all(map(is_packed, weights)):
        return False
    return mosaic.fits(weights) is None


def _branches(x, weights, following, interpret):
    """Returns products of x [B, 1, D] with both weights; no launch adds up parts of them."""
    if not interpret and few_rows_unsupported(x, weights) is None:
        return dense.dense_matmuls(x, tuple(weights), True)
    if interpret or not _packed(weights):
        return matmuls(x, weights, [None, None])
    products = mosaic.multiply_operand(
        operand(x[:, 0]), weights, x.dtype, following=following, to_kernel=True
    )
    return [y[: len(x), None] for y in products]


def _bias(layer, y):
    """Returns a layer's bias, zeros where it has none, in the type of what it is added to."""
    bias = layer.get("bias")
    return jnp.zeros(y.shape[-1], y.dtype) if bias is None else bias.astype(y.dtype)


RECURRENT_ROWS = RowsStep(
    first=BRANCHES,
    last="linear_out",
    to_kernel=True,
    unsupported_reason=lambda config, *arguments: unsupported_reason(*arguments),
    between=lambda config, *arguments, **options: between(*arguments, **options),
)
