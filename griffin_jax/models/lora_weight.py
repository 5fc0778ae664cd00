"""A weight with a low-rank addition."""

from typing import Any

import flax.struct
import flax.traverse_util
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
        """Returns the sum, which is made in float32."""
        added = jnp.matmul(self.b, self.a, precision="highest")
        total = dequantized(self.base, jnp.float32) + self.scale * added
        return total.astype(self.dtype if dtype is None else dtype)


def adapt(adapter: dict[str, Any], base: dict[str, Any], scale: float) -> dict[str, Any]:
    """Returns the base's tree with a `LoRAWeight` where the adapter has something to add.

    Args:
      adapter: A nested dict like `base`, with leaves LAYER/lora_a [rank, in] and LAYER/lora_b
        [out, rank] for some of its layers.
      base: Parameters, one tree per layer.
      scale: Multiplies b a.
    """
    low_rank, tree = map(flax.traverse_util.flatten_dict, (adapter, base))
    for *path, name in low_rank:
        if name == "lora_a":
            tree[*path, "weight"] = LoRAWeight(
                base=tree[*path, "weight"],
                a=low_rank[*path, "lora_a"],
                b=low_rank[*path, "lora_b"],
                scale=scale,
            )
    return flax.traverse_util.unflatten_dict(tree)


def low_rank_axes(axes: tuple) -> tuple[tuple, tuple]:
    """Returns what the dimensions of b [out, rank] and of a [rank, in] are, from those of their
    weight.
    """
    return (axes[0], None), (None, axes[1])
