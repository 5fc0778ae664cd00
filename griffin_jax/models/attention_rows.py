"""One token of many rows attends to their rings, in one launch."""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from griffin_jax.devices import current_mesh, on_parts, part_of
from griffin_jax.kernels.mosaic_gpu import backend
from griffin_jax.kernels.rotary import rotate
from griffin_jax.layer_of import LayerOf
from griffin_jax.models.residual_rows import RowsStep
from griffin_jax.models.state import Timeline

_KEYS = 64  # of a piece of a ring
_SIZES = 128, 256  # of heads, as shared memory and registers go
_SUMMED = 256  # of heads whose parts are added up in a launch of its own


def unsupported_reason(q: jax.Array, k: jax.Array, state: Any, timeline: Timeline) -> str | None:
    """Returns why the kernel does not support these arguments of `attention_rows`; None if it does."""
    if reason := backend.missing():
        return reason
    time, _, size = q.shape[1:]
    if time != 1:
        return f"{time} tokens are more than one"
    if timeline.open:
        return "which tokens count is not known yet"
    if isinstance(state, LayerOf):
        return "stacked layers"
    arguments = q, k, k, state, timeline
    q, k, _, state, timeline = part_of(arguments, _names(state))
    heads = q.shape[2]
    if q.dtype not in (jnp.bfloat16, jnp.float16) or state.keys.dtype != q.dtype:
        return f"it computes in 16 bits, not in {q.dtype} with rings in {state.keys.dtype}"
    if k.shape[2] != 1 or heads > 64:
        return f"{k.shape[2]} heads of keys for {heads} (needs one for at most 64)"
    if size not in _SIZES:
        return f"heads of {size} (needs {' or '.join(map(str, _SIZES))})"
    slots = state.slots()
    if slots % _KEYS or not slots:
        return f"a ring of {slots} slots (needs a multiple of {_KEYS})"
    return None


def attention_rows(
    reference: Callable,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    state: Any,
    timeline: Timeline,
    *,
    reach: int | None,
    interpret=False,
) -> tuple[jax.Array, Any]:
    """Computes local attention of one token of each row, and the rings with its key and value.

    Args:
      reference: The same without this kernel, whose gradient is taken, a function of the next five.
      q: [B, 1, N, H], rotated and not yet scaled.
      k: [B, 1, 1, H], rotated.
      v: [B, 1, 1, H].
      state: An `AttentionState` of B rows.
      timeline: The timeline of one token.
      reach: How many tokens back a query sees; None for all.
      interpret: Parameters of Pallas' interpreter, or False.

    Returns:
      [B, 1, N, H] in the dtype of `q`, and the state after.
    """

    @jax.custom_vjp
    def step(q, k, v, state, timeline):
        return _run(q, k, v, state, timeline, reach, interpret)

    def forward(*arguments):
        return step(*arguments), arguments

    def backward(arguments, gradients):
        return jax.vjp(reference, *arguments)[1](gradients)

    step.defvjp(forward, backward)
    return step(q, k, v, state, timeline)


def _names(state):
    """Returns what dimensions are of q, k, v, state and timeline; every device has all keys."""
    row = ("batch",)
    alone = ("batch", None, None, None)
    timeline = Timeline(positions=("batch", None), lengths=row, start=row)
    return ("batch", None, "heads", None), alone, alone, state.axes(), timeline


def _run(q, k, v, state, timeline, reach, interpret):
    run = functools.partial(_on_one_device, reach=reach, interpret=interpret)
    arguments = q, k, v, state, timeline
    if current_mesh() is None:
        return run(*arguments)
    names = _names(state)
    pairs = jax.tree.map(lambda x, dimensions: (x.shape, dimensions), state, names[3])
    return on_parts(run, arguments, names, ((q.shape, names[0]), pairs))


def _on_one_device(q, k, v, state, timeline, *, reach, interpret):
    """Returns what `attention_rows` does, of what is one device's."""
    mixed, sums, state = _in_parts(q, k, v, state, timeline, reach, interpret)
    heads, size = q.shape[2:]
    if _summed(heads, size):
        mixed = _summed_in_a_launch(mixed, sums, heads, q.dtype, False, interpret)
        return mixed.reshape(q.shape), state
    mixed = _added_up(mixed[:, :, :heads], *(sums[:, :, i, :heads] for i in range(2)))
    return mixed[:, None].astype(q.dtype), state


def _summed(heads, size):
    """Returns whether a kernel adds up the parts of so many heads of that size."""
    return size == _SUMMED and heads % 2 == 0


def _summed_in_a_launch(mixed, sums, heads, dtype, operand, interpret):
    """Returns [B, N H], or an operand; see `attention_sum_kernel.add_up`."""
    kernel = importlib.import_module("griffin_jax.kernels.mosaic_gpu.attention_sum_kernel")
    return kernel.add_up(
        mixed, sums, heads=heads, dtype=jnp.dtype(dtype), operand=operand, interpret=interpret
    )


def _in_parts(q, k, v, state, timeline, reach, interpret):
    """Returns what heads mix in each part of the rings, see `attend_to_rings`, and the state after."""
    kernel = importlib.import_module("griffin_jax.kernels.mosaic_gpu.attention_kernel")
    batch, _, heads, size = q.shape
    slots = state.slots()
    position = timeline.positions[:, 0]
    empty = (jnp.zeros((batch, count, size), q.dtype) for count in (-heads % 8, 6))
    queries, own = [q[:, 0], next(empty)], [k[:, 0], v[:, 0], next(empty)]
    mixed, sums, keys, values = kernel.attend_to_rings(
        jnp.concatenate([*queries, *own], axis=1),
        *(ring.reshape(batch, slots, size) for ring in (state.keys, state.values)),
        timeline.start,
        position if reach is None else jnp.minimum(position, reach),
        jnp.where(timeline.lengths > 0, position % slots, -1),
        parts=kernel.parts_of(batch, slots),
        interpret=interpret,
    )
    ring = state.keys.shape
    state = state.replace(keys=keys.reshape(ring), values=values.reshape(ring))
    return mixed, sums, state


def _added_up(mixed, scores, totals) -> Any:
    """Returns [B, N, H] of all parts [B, P, N, H], whose largest scores and sums are [B, P, N].

    Written part by part, which makes no launch of a reduction over parts.
    """
    parts = range(mixed.shape[1])
    largest = functools.reduce(jnp.maximum, (scores[:, part] for part in parts))
    shares = [jnp.exp2(scores[:, part] - largest) for part in parts]
    total = sum(shares[part] * totals[:, part] for part in parts)
    return sum((shares[part] / total)[..., None] * mixed[:, part] for part in parts)


def _between_unsupported(config, params, x, state, timeline):
    del params

    def heads(count):
        return jax.ShapeDtypeStruct((*x.shape[:2], count, config.head_size), x.dtype)

    if not _summed(config.num_heads, config.head_size):
        return f"{config.num_heads} heads of {config.head_size} (needs an even number of {_SUMMED})"
    q, k = heads(config.num_heads), heads(config.num_kv_heads)
    return unsupported_reason(q, k, state, timeline)


def _between(
    config: Any,
    params: dict,
    products: Sequence[jax.Array],
    state: Any,
    timeline: Timeline,
    *,
    operand: bool,
    interpret=False,
) -> tuple[jax.Array, Any]:
    """Computes what stands between the products of an attention block; see `RowsStep`."""

    def heads(y, name):
        bias = params[name].get("bias")
        y = y if bias is None else y + jax.lax.broadcast_to_rank(bias.astype(y.dtype), y.ndim)
        return y.reshape(len(y), 1, -1, config.head_size)

    def rotated(x):
        return rotate(x, timeline.positions, config.rope_base, config.rope_fraction)

    q, k, v = map(heads, products, ATTENTION_ROWS.first)
    mixed, sums, state = _in_parts(
        rotated(q), rotated(k), v, state, timeline, config.attention_reach, interpret
    )
    z = _summed_in_a_launch(mixed, sums, config.num_heads, q.dtype, operand, interpret)
    return z, state


ATTENTION_ROWS = RowsStep(
    first=("q_proj", "k_proj", "v_proj"),
    last="o_proj",
    to_kernel=False,
    unsupported_reason=_between_unsupported,
    between=_between,
)
