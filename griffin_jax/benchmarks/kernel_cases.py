"""The operations of a model at its own shapes, each as something that a device loop can repeat."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from griffin_jax.benchmarks.memory import tree_bytes
from griffin_jax.checkpoints.random_weights import random_params
from griffin_jax.config import GriffinConfig
from griffin_jax.kernels.dense_matmul import dense_matmul
from griffin_jax.kernels.int8_matmul import int8_matmul
from griffin_jax.kernels.linear_recurrence import linear_recurrence
from griffin_jax.kernels.local_attention import local_attention
from griffin_jax.kernels.packed_matmul import packed_matmul
from griffin_jax.kernels.packed_matmul_cpu import add_transposed_if_it_fits
from griffin_jax.kernels.rg_lru import rg_lru
from griffin_jax.models import declarations, init_state
from griffin_jax.models.blocks import ResidualBlock
from griffin_jax.models.layers import head
from griffin_jax.models.state import Timeline
from griffin_jax.quantization import FORMATS, PACKINGS

# Linear layers that read one input, whose weights are read in one product.
_GROUPS = (("gate_proj", "up_proj"), ("linear_y", "linear_x"), ("q_proj", "k_proj", "v_proj"))
# Products by the type of their weights.
_MATMULS = {"nf4": packed_matmul, "fp4": packed_matmul, "int8": int8_matmul}
_TINY = 1e-30
_BLOCKS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation at one shape.

    Attributes:
      operation: Its name in `griffin_jax.kernels`, or that of the peer's function.
      name: What sets this case apart.
      make: Draws the arguments after the carry, a tree of arrays.
      carry: Draws what a turn passes to the next, so that no turn can be left out.
      step: (carry, arguments, kernel) -> carry; makes `calls` calls.
      num_bytes: Read and written in one call, counted from the shapes.
      flops: The FLOPs of matrix products in one call.
      calls: Calls in one turn.
      dtype: The dtype of the products.
    """

    operation: str
    name: str
    make: Callable[[], Any]
    carry: Callable[[], Any]
    step: Callable[..., Any]
    num_bytes: float
    flops: float = 0.0
    calls: int = 1
    dtype: str = "bfloat16"


def packed_cases(
    config: GriffinConfig, rows: Sequence[int], dtype: str, quant_type: str, spread_bytes: int
) -> Iterator[Case]:
    """Yields products with packed weights of every shape in the model, for each number of rows.

    A turn reads as many different weights as make up `spread_bytes`, more than any cache holds.
    """
    for name, shapes in sorted(_products(config).items()):
        form, settings = FORMATS[quant_type], PACKINGS[quant_type]
        tensors = [form.abstract(shape, dtype, settings) for shape in shapes]
        calls = max(1, math.ceil(spread_bytes / tree_bytes(tensors)))
        width, out = shapes[0][1], sum(shape[0] for shape in shapes)
        for count in rows:
            yield Case(
                operation=_MATMULS[quant_type].__name__,
                name=f"{name}, {out} x {width}, {count} rows",
                make=functools.partial(_packed_weights, form, tensors, calls),
                carry=functools.partial(_normal, (count, width), dtype),
                step=functools.partial(_packed_step, _MATMULS[quant_type]),
                num_bytes=tree_bytes(tensors) + count * (width + out) * jnp.dtype(dtype).itemsize,
                flops=2 * count * width * out,
                calls=calls,
                dtype=dtype,
            )


def dense_cases(
    config: GriffinConfig, rows: Sequence[int], dtype: str, spread_bytes: int
) -> Iterator[Case]:
    """Yields the same products with weights in `dtype`, one weight at a time."""
    itemsize = jnp.dtype(dtype).itemsize
    for name, shapes in sorted(_products(config).items()):
        for shape in dict.fromkeys(shapes):
            weight_bytes = math.prod(shape) * itemsize
            calls = max(1, math.ceil(spread_bytes / weight_bytes))
            for count in rows:
                yield Case(
                    operation="dense_matmul",
                    name=f"{name}, {shape[0]} x {shape[1]}, {count} rows",
                    make=functools.partial(_dense_weights, shape, dtype, calls),
                    carry=functools.partial(_normal, (count, shape[1]), dtype),
                    step=_dense_step,
                    num_bytes=weight_bytes + count * sum(shape) * itemsize,
                    flops=2 * count * math.prod(shape),
                    calls=calls,
                    dtype=dtype,
                )


def recurrence_cases(width: int, time: int, dtype: str) -> Iterator[Case]:
    """Yields the linear recurrence in float32 and the RG-LRU in `dtype`, forward and backward."""
    whole = (1, time, width)
    elements, size = time * width, jnp.dtype(dtype).itemsize * time * width
    name = f"{time} x {width}"

    def case(operation, direction, make, step, num_bytes, dtype):
        carry = functools.partial(_state_and_nothing_computed, (1, width), step, make)
        return Case(operation, f"{direction}, {name}", make, carry, step, num_bytes, dtype=dtype)

    plain = functools.partial(_recurrence_inputs, whole)
    for operation, function in _recurrences().items():
        forward = functools.partial(_forward_step, function)
        backward = functools.partial(_backward_step, function)
        yield case(operation, "forward", plain, forward, 12 * elements, "float32")
        # Reads x, a, h and the gradient of h; writes h and two gradients.
        both = (12 + 20) * elements
        yield case(operation, "forward and backward", plain, backward, both, "float32")
    gated = functools.partial(_gated_inputs, whole, dtype)
    yield case("rg_lru", "forward", gated, _rg_lru_step, 4 * size, dtype)
    yield case("rg_lru", "forward and backward", gated, _rg_lru_backward_step, 12 * size, dtype)


def attention_cases(config: GriffinConfig, time: int, dtype: str) -> Iterator[Case]:
    """Yields local attention: a chunk of prefill behind a full ring, and a decoding step."""
    window = config.attention_window or time
    heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_size
    itemsize = jnp.dtype(dtype).itemsize
    for count in (time, 1):
        ring = size * 2 * window * kv_heads
        numbers = size * 2 * count * (heads + kv_heads) + ring
        yield Case(
            operation="local_attention",
            name=f"{count} tokens behind {window}, {heads} heads of {size}, {kv_heads} for keys",
            make=functools.partial(_attention_inputs, config, count, window, dtype),
            carry=functools.partial(_normal, (1, count, heads, size), dtype),
            step=functools.partial(_attention_step, window - config.window_includes_query),
            num_bytes=numbers * itemsize,
            flops=size * 4 * heads * count * window,
            dtype=dtype,
        )


def block_cases(config: GriffinConfig, dtype: str, quant_type: str) -> Iterator[Case]:
    """Yields a decoding step of one row through a residual block of each kind, packed and not.

    A turn goes through several blocks, behind one another.
    """
    for kind in dict.fromkeys(config.block_types):
        shape = config.replace(block_pattern=(kind,), num_layers=_BLOCKS, vocab_size=256)
        if config.attention_window is None:
            shape = shape.replace(attention_window=2048)
        for quantization in (PACKINGS[quant_type], PACKINGS["int8"], None):
            make = functools.partial(_blocks, shape, dtype, quantization)
            carry = functools.partial(_token_and_states, shape, dtype)
            moved = tree_bytes(jax.eval_shape(lambda m=make, c=carry: (m(), c())))
            yield Case(
                operation="residual_block",
                name=f"{kind}, one token, {quantization.name if quantization else dtype} weights",
                make=make,
                carry=carry,
                step=functools.partial(_block_step, shape),
                num_bytes=moved / _BLOCKS,
                calls=_BLOCKS,
                dtype=dtype,
            )


def head_cases(config: GriffinConfig, rows: Sequence[int], dtype: str) -> Iterator[Case]:
    """Yields logits under the embedding."""
    shape, itemsize = (config.vocab_size, config.width), jnp.dtype(dtype).itemsize
    for count in rows:
        yield Case(
            operation="head",
            name=f"{shape[0]} x {shape[1]}, {count} rows",
            make=lambda: [_normal(shape, dtype)],
            carry=functools.partial(_normal, (1, count, config.width), dtype),
            step=_head_step,
            num_bytes=math.prod(shape) * itemsize
            + count * (config.width * itemsize + 4 * shape[0]),
            flops=2 * count * math.prod(shape),
            dtype=dtype,
        )


def _products(config):
    """Returns the shapes of the weights that are read together, by their layers' names."""
    products = {}
    for path, declaration in declarations(config).items():
        if declaration.kind == "linear":
            layer = path.split("/")[-2]
            group = next((g for g in _GROUPS if layer in g), (layer,))
            products.setdefault(" + ".join(group), {})[layer] = declaration.shape
    return {name: tuple(shapes.values()) for name, shapes in products.items()}


def _recurrences():
    def associative(x, a, h0, *, kernel):
        def combine(earlier, later):
            return earlier[0] * later[0], later[0] * earlier[1] + later[1]

        # The first step takes the state in, so that no part of the scan can leave the loop.
        first = jnp.arange(x.shape[1])[None, :, None] == 0
        x = x + jnp.where(first, a * h0[:, None], 0)
        return lax.associative_scan(combine, (a, x), axis=1)[1]

    functions = {"linear_recurrence": linear_recurrence, "jax.lax.associative_scan": associative}
    try:
        from recurrentgemma.jax import scan
    except Exception:  # whatever an unfitting install of the peer raises
        return functions
    functions["recurrentgemma's scan"] = lambda x, a, h0, *, kernel: scan.linear_scan(x, a, h0)[0]
    return functions


@functools.partial(jax.jit, static_argnums=(0, 1))
def _normal(shape, dtype, seed=0):
    return jax.random.normal(jax.random.key(seed, impl="rbg"), shape, dtype)


def _packed_weights(form, tensors, calls):
    def fill(tensor, seed):
        return form.noise(jax.random.key(seed, impl="rbg"), tensor)

    groups = [[fill(t, 100 * call + i) for i, t in enumerate(tensors)] for call in range(calls)]
    return add_transposed_if_it_fits(groups)


def _dense_weights(shape, dtype, calls):
    return [_normal(shape, dtype, seed) for seed in range(calls)]


def _recurrence_inputs(shape):
    x = _normal(shape, "float32")
    return x, jax.nn.sigmoid(_normal(shape, "float32", 1) + 3)


def _gated_inputs(shape, dtype):
    gates = [_normal(shape, dtype, seed) for seed in range(3)]
    positions = jnp.arange(shape[1])[None]
    return *gates, jnp.full(shape[-1:], -4, dtype), positions, jnp.full(1, shape[1])


def _attention_inputs(config, time, window, dtype):
    kv = (1, time, config.num_kv_heads, config.head_size)
    ring = (1, window, config.num_kv_heads, config.head_size)
    start = jnp.full(1, 10 * window)
    positions = start[:, None] + jnp.arange(time)[None]
    return *(_normal(s, dtype, i) for i, s in enumerate((kv, kv, ring, ring))), start, positions


def _packed_step(matmul, x, weights, kernel):
    outputs = [matmul(x, group, kernel=kernel) for group in weights]
    outputs = lax.optimization_barrier(outputs)
    total = sum(y[:, :1] for group in outputs for y in group)
    return x + jnp.asarray(_TINY * total, x.dtype)


def _dense_step(x, weights, kernel):
    del kernel  # there is one
    outputs = lax.optimization_barrier([dense_matmul(x, weight) for weight in weights])
    return x + jnp.asarray(_TINY * sum(y[:, :1] for y in outputs), x.dtype)


# A turn of a recurrence hands on the next state and all that it has computed: of a scan whose last
# state alone is wanted, a compiler leaves out most.
def _state_and_nothing_computed(shape, step, make):
    state = _normal(shape, "float32")
    _, computed = jax.eval_shape(lambda: step((state, None), make(), None))
    return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), computed)


def _forward_step(function, carry, arguments, kernel):
    h = function(*arguments, carry[0], kernel=kernel)
    return h[:, -1], h


def _backward_step(function, carry, arguments, kernel):
    h, pull = jax.vjp(lambda x, a, h0: function(x, a, h0, kernel=kernel), *arguments, carry[0])
    # A gradient that differs from turn to turn, or all of this would leave the loop.
    *gradients, state = pull(h)
    return state, gradients


def _rg_lru(hidden, arguments, kernel):
    x, gate_x, gate_a, a_param, positions, lengths = arguments
    return rg_lru(x, gate_x, gate_a, a_param, hidden, positions, lengths, kernel=kernel)


def _rg_lru_step(carry, arguments, kernel):
    y, hidden = _rg_lru(carry[0], arguments, kernel)
    return hidden, y


def _rg_lru_backward_step(carry, arguments, kernel):
    def run(hidden, x, gate_x, gate_a):
        return _rg_lru(hidden, (x, gate_x, gate_a, *arguments[3:]), kernel)

    outputs, pull = jax.vjp(run, carry[0], *arguments[:3])
    hidden, *gradients = pull(outputs)
    return hidden, gradients


def _attention_step(reach, q, arguments, kernel):
    out = local_attention(q, *arguments, reach=reach, kernel=kernel)
    return (q + _TINY * lax.optimization_barrier(out)).astype(q.dtype)


def _blocks(config, dtype, quantization):
    params = random_params(config, dtype, quantization)
    return [params[f"blocks_{i}"] for i in range(config.num_layers)]


def _token_and_states(config, dtype):
    state = init_state(config, 1, dtype)
    return _normal((1, 1, config.width), dtype), state.blocks


def _block_step(config, carry, blocks, kernel):
    x, states = carry
    place = jnp.full(1, 10 * (config.attention_window or 1), jnp.int32)
    timeline = Timeline(place[:, None], jnp.ones(1, jnp.int32), place)
    after = []
    for kind, params, state in zip(config.block_types, blocks, states, strict=True):
        block = ResidualBlock(config, kind, dtype=x.dtype, param_dtype=x.dtype, kernel=kernel)
        x, state = block.apply({"params": params}, x, state, timeline)
        after.append(state)
    return x / 2, tuple(after)  # so that nothing grows with the turns


def _head_step(x, weights, kernel):
    del kernel  # there is one
    logits = lax.optimization_barrier(head(x, weights[0]))
    return x + (_TINY * logits[:, :, :1]).astype(x.dtype)
