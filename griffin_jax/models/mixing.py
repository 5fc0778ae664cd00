"""What a kind of temporal mixing has to offer for a model to be built of it."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from griffin_jax.config import GriffinConfig
from griffin_jax.layer_of import LayerOf
from griffin_jax.models.residual_rows import RowsStep
from griffin_jax.models.residual_step import FusedStep
from griffin_jax.models.state import BlockState, Timeline


class TemporalMixing(nn.Module):
    """The half of a residual block that mixes tokens; see `blocks.BLOCKS` for the kinds there are.

    A subclass declares its parameters with `parameter`, directly or through the layers of
    `models.layers`, and defines `__call__` and `init_state`; what it leaves out of the rest has a
    default. Shardings, quantization, adapters, counting and stacks follow.

    Attributes:
      config: The model's shape.
      dtype: The dtype of activations.
      param_dtype: The dtype of parameters that `init` makes.
      step: How to run a residual block around it in few launches for one token; None for no way.
      rows: The same for one token of many rows.
    """

    config: GriffinConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    step: ClassVar[FusedStep | None] = None
    rows: ClassVar[RowsStep | None] = None

    def __call__(
        self, x: jax.Array, state: BlockState | LayerOf, timeline: Timeline
    ) -> tuple[jax.Array, BlockState | LayerOf]:
        """Mixes [B, T, D]; any split of a text into calls must give the same result.

        A state that `grows` may come as a `LayerOf`, and is returned as it came. What a reader may
        want to see goes through `places.place` by a name.
        """
        raise NotImplementedError

    @classmethod
    def init_state(
        cls, config: GriffinConfig, batch_size: int, dtype: DTypeLike, capacity: int | None
    ) -> BlockState:
        """Returns the state before the first token.

        Args:
          config: The model's shape.
          batch_size: Number of rows, B.
          dtype: The dtype of activations.
          capacity: How many tokens a state that `grows` has room for; None where nobody said.

        Raises:
          ValueError: the capacity is needed and not given.
        """
        raise NotImplementedError

    @classmethod
    def check(cls, config: GriffinConfig) -> None:
        """Raises ValueError where the config's sizes do not suit this kind."""

    @classmethod
    def pair_flops(cls, config: GriffinConfig) -> int:
        """Returns FLOPs for each pair of a token and an earlier one that it looks at."""
        return 0

    @property
    def out_init_scale(self) -> float:
        """The variance scale of a layer that writes to the residual stream."""
        return 2.0 / self.config.num_layers
