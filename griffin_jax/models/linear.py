"""The matrix products of the linear layers, whatever kind their weights are of."""

from collections.abc import Sequence

import jax

from griffin_jax.devices import MODEL, current_mesh, per_shard
from griffin_jax.kernels.dense_matmul import dense_matmul
from griffin_jax.kernels.packed_matmul import packed_matmul
from griffin_jax.layer_of import LayerOf
from griffin_jax.models.lora_weight import LoRAWeight
from griffin_jax.quantization.tensor import QuantizedTensor, decode_scales

Weight = jax.Array | QuantizedTensor | LayerOf | LoRAWeight
_PACKED = (QuantizedTensor, LayerOf)


def matmul(x: jax.Array, weight: Weight, split: str | None = None) -> jax.Array:
    """x @ weight.T, accumulated in float32.

    Args:
      x: [..., in], a floating-point type.
      weight: [out, in], an array, a 4-bit weight, one of a stack of these, or any with a low-rank
        addition; used in x's dtype (4-bit ones by some kernels in float32, which rounds less).
      split: The side, "out" or "in", on which a mesh has cut a 4-bit weight over "model".

    Returns:
      [..., out] in x's dtype.
    """
    if isinstance(weight, LoRAWeight):
        # For its gradient a 4-bit base is decoded again, not kept decoded.
        product = jax.checkpoint(matmul, static_argnums=2)(x, weight.base, split)
        return product + weight.scale * matmul(matmul(x, weight.a), weight.b)
    if isinstance(weight, _PACKED):
        return _packed(x, [weight], [split])[0]
    return dense_matmul(x, weight)


def matmuls(
    x: jax.Array, weights: Sequence[Weight], splits: Sequence[str | None]
) -> tuple[jax.Array, ...]:
    """`matmul` of one input with several weights; 4-bit ones are read in one product."""
    if all(isinstance(weight, _PACKED) for weight in weights):
        return _packed(x, weights, splits)
    return tuple(map(matmul, [x] * len(weights), weights, splits))


def _packed(x, weights, splits):
    """`packed_matmul` by every device of a mesh, of its part of the weights."""
    if current_mesh() is None or x.ndim != 3:
        return packed_matmul(x, weights)
    weights = list(map(_with_plain_scales, weights))
    # A flat weight has no sides to cut.
    flat = [_one(w).shape[1] % _one(w).block_size != 0 for w in weights]
    splits = [None if f else split for f, split in zip(flat, splits, strict=True)]
    sums = splits == ["in"]
    arrays, treedef = jax.tree.flatten(weights)
    names = jax.tree.leaves(
        [_part_names(w, *how) for w, *how in zip(weights, splits, flat, strict=True)],
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )

    def product(x, *arrays):
        products = packed_matmul(x, list(map(_fitted, treedef.unflatten(arrays), flat)))
        products = jax.lax.psum(products, MODEL) if sums else products
        return products if len(products) > 1 else products[0]

    results = [
        ((*x.shape[:-1], w.shape[0]), ("batch", "time", "features" if s == "out" else None))
        for w, s in zip(weights, splits, strict=True)
    ]
    inputs = ("batch", "time", "features" if sums else None)
    products = per_shard(product, [x, *arrays], [inputs, *names], results)
    return products if len(weights) > 1 else (products,)


def _one(weight):
    return weight.stack if isinstance(weight, LayerOf) else weight


def _with_plain_scales(weight):
    """The second level of scales counts through the whole weight, so it is decoded before a cut."""
    if not _one(weight).double_quantized:
        return weight
    weight = weight.take() if isinstance(weight, LayerOf) else weight
    scales = decode_scales(weight)
    return weight.replace(absmax=scales, nested_absmax=None, nested_code=None, nested_offset=None)


def _part_names(weight, split, flat):
    """What the dimensions of the arrays of a weight are, in its own structure."""
    sides = tuple("features" if split == side else None for side in ("out", "in"))
    sides = (None,) if flat else sides
    if isinstance(weight, LayerOf):
        stack = weight.stack.replace(packed=(None, *sides), absmax=(None, *sides), code=(None,) * 2)
        return weight.replace(stack=stack, index=())
    return weight.replace(packed=sides, absmax=sides, code=(None,))


def _fitted(weight, flat):
    """A part of a weight says its own shape."""
    if flat:
        return weight
    one = _one(weight)
    one = one.replace(shape=(one.packed.shape[-2], 2 * one.packed.shape[-1]))
    return weight.replace(stack=one) if isinstance(weight, LayerOf) else one
