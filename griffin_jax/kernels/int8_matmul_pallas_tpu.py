"""Products with 8-bit weights as a Pallas kernel for TPUs (written for v5e).

A tile of a weight is read as it lies, [out, in], converted to bfloat16, which has every integer of 8
bits, and multiplied by x along the inputs of both; sums in float32 are multiplied by the scales of
their rows at the end. No weight is ever whole in 16 bits.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from griffin_jax.layer_of import LayerOf
from griffin_jax.quantization.int8 import INVERSE, Int8Weight
from griffin_jax.weight import no_gradient

_LANES = 128
_OUTPUTS = 1024  # of a tile, at most
_INPUTS = 2048
_MAX_ROWS = 512  # of x that share a converted tile
_ROW_TILE = 16  # of bfloat16
_VMEM = 48 * 2**20

Weight = Int8Weight | LayerOf


def unsupported_reason(x: jax.Array, weight: Weight) -> str | None:
    """Returns None, or the reason why the kernel does not serve this product."""
    if x.dtype != jnp.bfloat16:
        return f"it takes bfloat16, not {x.dtype}"
    features, inputs = weight.shape
    if features % _LANES or inputs % _LANES:
        return f"a weight of {features} x {inputs} (needs multiples of {_LANES})"
    return None


def int8_matmul(x: jax.Array, weight: Weight, *, interpret: bool = False) -> jax.Array:
    """Returns x @ weight.T for bfloat16 x [..., in], accumulated in float32; see `unsupported_reason`."""
    rows = x.reshape(-1, x.shape[-1])
    padded = jnp.pad(rows, ((0, -rows.shape[0] % _ROW_TILE), (0, 0)))
    product: jax.Array = _product(padded, weight, interpret)
    return product[: rows.shape[0]].reshape(*x.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x, weight, interpret):
    return _call(x, weight, interpret)


def _forward_rule(x, weight, interpret):
    return _call(x, weight, interpret), weight


def _backward_rule(interpret, weight, gradient):
    dx = jnp.einsum("bo,oi->bi", gradient, weight.dequantize(gradient.dtype))
    # 8-bit weights are not trained; what is differentiated is what they multiply.
    return dx, no_gradient(weight)


_product.defvjp(_forward_rule, _backward_rule)


@functools.partial(jax.jit, static_argnums=2)  # so that layers of one shape are traced once
def _call(x, weight, interpret):
    if isinstance(weight, LayerOf):
        stack, layer = weight.stack, weight.index
    else:
        stack, layer = jax.tree.map(lambda leaf: leaf[None], weight), jnp.int32(0)
    rows, (features, inputs) = x.shape[0], stack.shape
    tile_rows = min(rows, _MAX_ROWS)
    tile_inputs = _tile(inputs, _INPUTS)
    tile_outputs = _tile(features, _OUTPUTS)
    return pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(pl.cdiv(rows, tile_rows), features // tile_outputs, inputs // tile_inputs),
            in_specs=[
                pl.BlockSpec((tile_rows, tile_inputs), lambda m, n, k, _: (m, k)),
                pl.BlockSpec((None, tile_outputs, tile_inputs), lambda m, n, k, at: (at[0], n, k)),
                pl.BlockSpec((None, 1, tile_outputs), lambda m, n, k, at: (at[0], 0, n)),
            ],
            out_specs=pl.BlockSpec((tile_rows, tile_outputs), lambda m, n, k, _: (m, n)),
            scratch_shapes=[pltpu.VMEM((tile_rows, tile_outputs), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((rows, features), x.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=_VMEM
        ),
        name="int8_matmul",
        interpret=interpret,
    )(layer[None], x, _in_main_memory(stack.rows, interpret), stack.absmax[:, None])


def _in_main_memory(stack, interpret):
    """Keeps XLA from fetching a whole stack ahead of a kernel that reads one layer of it."""
    return stack if interpret else pltpu.with_memory_space_constraint(stack, pltpu.HBM)


def _tile(size, most):
    return max(t for t in range(_LANES, most + 1, _LANES) if size % t == 0)


def _kernel(layer_ref, x_ref, rows_ref, absmax_ref, out_ref, sum_ref):
    del layer_ref
    k = pl.program_id(2)

    @pl.when(k == 0)
    def _():
        sum_ref[...] = jnp.zeros_like(sum_ref)

    sum_ref[...] += lax.dot_general(
        x_ref[...],
        rows_ref[...].astype(jnp.bfloat16),
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )

    @pl.when(k == pl.num_programs(2) - 1)
    def _():
        out_ref[...] = (sum_ref[...] * (absmax_ref[...] * INVERSE)).astype(out_ref.dtype)
