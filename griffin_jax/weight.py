"""What a leaf of a parameter tree offers that is more than an array."""

import math
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


class Weight:
    """A weight [out, in] in a format of its own, which linear layers multiply by.

    A format is a pytree that derives from this class, with a row in `models.linear.PRODUCTS` for how
    it multiplies.

    Attributes:
      shape: The shape of the weight as an array.
      dtype: The dtype of the weight as an array.
      quant_type: The row of `quantization.FORMATS` that packs and stores weights of this format; only
        what checkpoints hold has one.
      divides: A mesh may cut each array as `axes` says, as things are; see `divisible`.
      read_in_stack: A loop over layers hands its kernels the whole stack and a layer's number, as a
        `LayerOf`, instead of a copy of the layer.
    """

    shape: tuple[int, ...]
    dtype: Any
    quant_type: str
    divides: bool = True
    read_in_stack: ClassVar[bool] = False

    if TYPE_CHECKING:  # flax.struct.dataclass brings it

        def replace(self, **changes: Any) -> Self: ...

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements of the weight."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of everything stored."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))

    @property
    def format(self) -> type:
        """The format: what `models.linear.PRODUCTS` finds a product by."""
        return type(self)

    def axes(self, axes: tuple) -> Any:
        """Returns the axes of each array of the weight, in its own structure.

        Args:
          axes: What the weight's own dimensions are, such as ("features", "width"). Arrays with more
            dimensions, of layers that are stacked, have None in front.
        """
        raise NotImplementedError

    def dequantize(self, dtype: DTypeLike | None = None) -> jax.Array:
        """Returns the weight as an array, in its own dtype by default."""
        raise NotImplementedError

    def layer(self) -> "Weight":
        """Returns the weight by itself, apart from a stack that it may be read in."""
        return self

    def divisible(self) -> "Weight":
        """Returns the same weight in a form of which a mesh may cut each array as `axes` says."""
        return self

    def part(self) -> "Weight":
        """Returns what is left of the weight after a mesh cut its arrays, whose shape it says
        again.
        """
        return self


def is_weight(leaf: Any) -> TypeGuard[Weight]:
    """Returns whether a leaf of a parameter tree is a `Weight`, and no plain array."""
    return isinstance(leaf, Weight)


def format_of(weight: jax.Array | Weight) -> type:
    """Returns the format of a weight; `jax.Array` of a plain array."""
    return weight.format if is_weight(weight) else jax.Array


def dequantized(weight: jax.Array | Weight, dtype: DTypeLike) -> jax.Array:
    """Returns a weight of any format as an array."""
    return weight.dequantize(dtype) if isinstance(weight, Weight) else weight.astype(dtype)


def axes_of(leaf: Any, axes: tuple) -> Any:
    """Returns the axes of an array, or of each array of a `Weight`, whose own dimensions are
    `axes`.
    """
    return leaf.axes(axes) if is_weight(leaf) else behind(axes, leaf.ndim)


def behind(axes: tuple, ndim: int) -> tuple:
    """Returns the axes of an array of so many dimensions: None in front of those that `axes`
    names.
    """
    return (None,) * (ndim - len(axes)) + tuple(axes)


def no_gradient(weight: Any) -> Any:
    """Returns a gradient of nought for a weight that is not trained, as its kernel's rule gives it."""

    def of_leaf(leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.zeros_like(leaf) if floating else np.zeros(leaf.shape, jax.dtypes.float0)

    return jax.tree.map(of_leaf, weight)
