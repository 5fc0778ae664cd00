"""A weight with a low-rank addition."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from griffin_jax.weight import Weight, axes_of, behind, dequantized

LOW_RANK = ("lora_b", "lora_a")  # the names of an adapter's parts beside their weight's


@flax.struct.dataclass
class LoRAWeight(Weight):
    """base + scale * b a, as a leaf of a parameter tree (LoRA, arXiv:2106.09685).

    Attributes:
      base: [out, in], an array or a packed weight.
      a: [rank, in].
      b: [out, rank].
      scale: A constant.
    """

    base: Any
    a: jax.Array
    b: jax.Array
    scale: float = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.base.shape)

    @property
    def dtype(self) -> Any:
        return self.base.dtype

    def axes(self, axes: tuple) -> "LoRAWeight":
        out, inner = low_rank_axes(axes)
        return self.replace(
            base=axes_of(self.base, axes),
            a=behind(inner, self.a.ndim),
            b=behind(out, self.b.ndim),
        )

    def dequantize(self, dtype: DTypeLike | None = None) -> jax.Array:
        """The sum, which is made in float32."""
        added = jnp.matmul(self.b, self.a, precision="highest")
        total = dequantized(self.base, jnp.float32) + self.scale * added
        return total.astype(self.dtype if dtype is None else dtype)


def low_rank_axes(axes: tuple) -> tuple[tuple, tuple]:
    """What the dimensions of b [out, rank] and of a [rank, in] are, from those of their weight."""
    return (axes[0], None), (None, axes[1])
