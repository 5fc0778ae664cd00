"""The matrix products of the linear layers, whatever format their weights are in."""

import itertools
from collections.abc import Callable, Sequence

import jax

from griffin_jax.devices import MODEL, current_mesh, per_shard
from griffin_jax.kernels import dense_matmul_mosaic_gpu
from griffin_jax.kernels.choice import choose
from griffin_jax.kernels.dense_matmul import dense_matmul
from griffin_jax.kernels.int8_matmul import int8_matmul
from griffin_jax.kernels.packed_matmul import packed_matmul
from griffin_jax.models.lora_weight import LoRAWeight
from griffin_jax.quantization.int8 import Int8Weight
from griffin_jax.quantization.tensor import QuantizedTensor
from griffin_jax.weight import Weight, format_of

AnyWeight = jax.Array | Weight


def matmul(x: jax.Array, weight: AnyWeight, split: str | None = None) -> jax.Array:
    """Returns x @ weight.T, accumulated in float32.

    Args:
      x: [..., in], a floating-point type.
      weight: [out, in], an array or a `Weight`; used in x's dtype (packed ones by some kernels in
        float32, which rounds less).
      split: The side, "out" or "in", on which a mesh has cut a packed weight over "model".

    Returns:
      [..., out] in x's dtype.
    """
    return matmuls(x, [weight], [split])[0]


def matmuls(
    x: jax.Array, weights: Sequence[AnyWeight], splits: Sequence[str | None]
) -> tuple[jax.Array, ...]:
    """Returns `matmul` of one input with several weights; those of one packed format are read
    together.
    """
    formats = {format_of(weight) for weight in weights}
    if len(formats) == 1:
        return PRODUCTS[formats.pop()](x, weights, splits)
    return tuple(map(matmul, [x] * len(weights), weights, splits))


def _dense(x, weights, splits):
    """Computes products with plain arrays, which the compiler partitions."""
    del splits
    reasons = {"mosaic_gpu": few_rows_unsupported(x, weights), "reference": None}
    if choose("dense_matmuls", reasons) == "mosaic_gpu":
        return dense_matmul_mosaic_gpu.dense_matmuls(x, tuple(weights))
    return tuple(dense_matmul(x, weight) for weight in weights)


def few_rows_unsupported(x: jax.Array, weights: Sequence[AnyWeight]) -> str | None:
    """Returns None, or why the kernel of few rows does not serve x [B, 1, in] under these weights."""
    if not all(isinstance(weight, jax.Array) for weight in weights):
        return "weights that are no arrays"
    if x.ndim != 3 or x.shape[1] != 1:
        return f"it multiplies one token of each row, not {[*x.shape]}"
    if current_mesh() is not None:
        return "it runs on one device"
    return dense_matmul_mosaic_gpu.unsupported_reason(x, weights)


def _low_rank(x, weights, splits):
    def multiply(weight, split):
        # For its gradient a packed base is decoded again, not kept decoded.
        product = jax.checkpoint(matmul, static_argnums=2)(x, weight.base, split)
        return product + weight.scale * matmul(matmul(x, weight.a), weight.b)

    return tuple(map(multiply, weights, splits))


def in_parts(kernel: Callable) -> Callable:
    """Multiplies on every device of a mesh by its part of the weights.

    Args:
      kernel: From x and weights of one format to a product for each, on one device.
    """

    def product(x, weights, splits):
        if current_mesh() is None or x.ndim != 3:
            return kernel(x, weights)
        weights = [weight.divisible() for weight in weights]
        arrays, treedef = jax.tree.flatten(weights)
        axes = [
            weight.axes(tuple("features" if split == side else None for side in ("out", "in")))
            for weight, split in zip(weights, splits, strict=True)
        ]
        names = [jax.tree.leaves(weight, is_leaf=_is_axes) for weight in axes]
        # A format may store a weight so that it has no sides to cut.
        splits = [
            split if any("features" in dimensions for dimensions in arrays) else None
            for split, arrays in zip(splits, names, strict=True)
        ]
        sums = splits == ["in"]

        def by_part(x, *arrays):
            products = kernel(x, [weight.part() for weight in treedef.unflatten(arrays)])
            products = jax.lax.psum(products, MODEL) if sums else products
            return products if len(products) > 1 else products[0]

        results = [
            ((*x.shape[:-1], w.shape[0]), ("batch", "time", "features" if s == "out" else None))
            for w, s in zip(weights, splits, strict=True)
        ]
        inputs = ("batch", "time", "features" if sums else None)
        products = per_shard(by_part, [x, *arrays], [inputs, *itertools.chain(*names)], results)
        return products if len(weights) > 1 else (products,)

    return product


def _is_axes(leaf):
    return isinstance(leaf, tuple)


# A row for each format: (x, weights, splits) -> a product for each weight.
PRODUCTS: dict[type, Callable] = {
    jax.Array: _dense,
    QuantizedTensor: in_parts(packed_matmul),
    Int8Weight: in_parts(int8_matmul),
    LoRAWeight: _low_rank,
}
