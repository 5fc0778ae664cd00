"""One layer's part of arrays that are stacked over layers."""

from typing import Any

import flax.struct
import jax
from jax import lax
from jax.typing import DTypeLike

from griffin_jax.weight import Weight


@flax.struct.dataclass
class LayerOf(Weight):
    """A view of one layer in a stack: of a packed weight, or of a block's state.

    A loop over layers that slices its arrays copies every slice first. A kernel that is given the
    stack and the layer's number reads it where it lies.

    Attributes:
      stack: A pytree whose arrays have a leading axis of layers. Of a packed weight, the fields that
        are no arrays (such as `shape`) are one layer's.
      index: int32[], the layer.
    """

    stack: Any
    index: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """One layer's."""
        return tuple(self.stack.shape)

    @property
    def dtype(self) -> Any:
        return self.stack.dtype

    @property
    def format(self) -> type:
        return self.stack.format

    def take(self) -> Any:
        """Returns the layer alone, which may be a copy."""
        return jax.tree.map(lambda x: _take(x, self.index), self.stack)

    def put(self, layer: Any) -> "LayerOf":
        """Returns the same view of a stack in which the layer is replaced."""
        stack = jax.tree.map(
            lambda x, new: lax.dynamic_update_index_in_dim(x, new, self.index, 0), self.stack, layer
        )
        return self.replace(stack=stack)

    def axes(self, axes: tuple) -> "LayerOf":
        return self.replace(stack=self.stack.axes(axes), index=())

    def dequantize(self, dtype: DTypeLike | None = None) -> jax.Array:
        return self.take().dequantize(dtype)

    def layer(self) -> Weight:
        return self.take()

    def divisible(self) -> Weight:
        return self if self.stack.divides else self.take().divisible()

    def part(self) -> "LayerOf":
        return self.replace(stack=self.stack.part())


def _take(x, index):
    return lax.dynamic_index_in_dim(x, index, keepdims=False)
