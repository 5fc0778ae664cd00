"""What a Griffin model remembers, and where the tokens of one call stand."""

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from griffin_jax.config import ATTENTION, GriffinConfig


@flax.struct.dataclass
class RecurrentState:
    """Memory of one recurrent block.

    Attributes:
      hidden: float32[B, R], the RG-LRU's state.
      conv: [B, 3, R], the last inputs of the convolution, newest last.
    """

    hidden: jax.Array
    conv: jax.Array


@flax.struct.dataclass
class AttentionState:
    """Memory of one attention block: rings of rotated keys and of values.

    Attributes:
      keys: [B, S, K, H]. Slot s holds the newest position p of the current document with
        p % S == s; `State.position` tells which slots are written.
      values: [B, S, K, H].
    """

    keys: jax.Array
    values: jax.Array


@flax.struct.dataclass
class State:
    """Everything that a text leaves behind; its size does not depend on the text's length.

    The batch is the first axis of every leaf: `jax.tree.map(lambda x: x[rows], state)` selects,
    repeats or reorders rows.

    Attributes:
      position: int32[B], the position in its document of each row's next token.
      blocks: A `RecurrentState` or `AttentionState` per layer.
    """

    position: jax.Array
    blocks: tuple[RecurrentState | AttentionState, ...]


@flax.struct.dataclass
class Timeline:
    """Where the tokens of one call stand.

    Attributes:
      positions: int32[B, T], each token's position in its document; 0 starts a new document.
      lengths: int32[B], how many of a row's T tokens are real; padding stands at the right.
      start: int32[B], `State.position` before the call.
      fresh: Nothing was read before, which is known without looking at `start`.
    """

    positions: jax.Array
    lengths: jax.Array
    start: jax.Array
    fresh: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def end(self) -> jax.Array:
        """int32[B], `State.position` after the call."""
        last = jnp.take_along_axis(
            self.positions, jnp.maximum(self.lengths - 1, 0)[:, None], axis=1
        )[:, 0]
        return jnp.where(self.lengths > 0, last + 1, self.start)


def init_state(
    config: GriffinConfig,
    batch_size: int,
    dtype: DTypeLike = jnp.float32,
    capacity: int | None = None,
) -> State:
    """The state before the first token.

    Args:
      config: The model's shape.
      batch_size: Number of rows, B.
      dtype: Of keys, values and convolution inputs; the RG-LRU's state is always float32.
      capacity: Slots of the attention rings, S. Defaults to the attention window. Must be given
        when the window is unbounded; keys beyond it are then forgotten, oldest first.

    Raises:
      ValueError: the window is unbounded and no capacity is given.
    """
    capacity = capacity if config.attention_window is None else config.attention_window
    if capacity is None and ATTENTION in config.block_types:
        raise ValueError(
            "attention_window is None (unbounded): give the state's capacity in tokens"
        )

    def block(kind):
        if kind == ATTENTION:
            shape = (batch_size, capacity, config.num_kv_heads, config.head_size)
            return AttentionState(keys=jnp.zeros(shape, dtype), values=jnp.zeros(shape, dtype))
        width = config.recurrence_width
        return RecurrentState(
            hidden=jnp.zeros((batch_size, width), jnp.float32),
            conv=jnp.zeros((batch_size, config.conv_width - 1, width), dtype),
        )

    return State(
        position=jnp.zeros(batch_size, jnp.int32), blocks=tuple(map(block, config.block_types))
    )
