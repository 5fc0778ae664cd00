"""A weight with a low-rank addition."""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class LoRAWeight:
    """base + scale * b a, as a leaf of a parameter tree (LoRA, arXiv:2106.09685).

    Attributes:
      base: [out, in], an array or a 4-bit weight.
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
