"""What a Griffin model remembers, and where the tokens of one call stand."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import flax.struct
import jax
import jax.numpy as jnp

from griffin_jax.weight import behind


def array(*axes: str | None) -> Any:
    """Returns a field of a state that is an array, and what its dimensions are; the first is the
    batch.
    """
    return flax.struct.field(metadata={"axes": axes})


class BlockState:
    """The memory of one block: a dataclass whose fields are made by `array`.

    Its size must not depend on how much was read, but for one that `grows`.

    Attributes:
      grows: It has a slot for every token within reach. A step then reads all slots that are
        written and writes one; it is handed a `LayerOf` where layers are stacked, and writes to its
        place in the stack. Any other state is read and written whole.
    """

    grows: ClassVar[bool] = False

    if TYPE_CHECKING:  # flax.struct.dataclass brings it

        def replace(self, **changes: Any) -> Self: ...

    def axes(self) -> Any:
        """Returns what the dimensions of each array are, in the state's structure.

        Arrays of layers that are stacked have None in front.
        """
        return self.replace(
            **{
                field.name: behind(field.metadata["axes"], getattr(self, field.name).ndim)
                for field in dataclasses.fields(self)
            }
        )

    def layer(self) -> "BlockState":
        """Returns the state by itself, apart from a stack that a `LayerOf` reads it in."""
        return self

    def slots(self) -> int | None:
        """Returns how many tokens a state that grows has room for; None of any other."""
        return None

    def with_slots(self, slots: int) -> "BlockState":
        """Returns the state with room for so many tokens, of which none has been forgotten yet."""
        del slots
        return self


@flax.struct.dataclass
class State:
    """Everything that a text leaves behind; its size does not depend on the text's length.

    The batch is the first axis of every leaf: `jax.tree.map(lambda x: x[rows], state)` selects,
    repeats or reorders rows.

    Attributes:
      position: int32[B], the position in its document of each row's next token.
      blocks: The state of each layer's block.
    """

    position: jax.Array
    blocks: tuple[BlockState, ...]

    def axes(self) -> "State":
        """Returns what the dimensions of each array are; see `BlockState.axes`."""
        return State(position=("batch",), blocks=tuple(block.axes() for block in self.blocks))


@flax.struct.dataclass
class Timeline:
    """Where the tokens of one call stand.

    Attributes:
      positions: int32[B, T], each token's position in its document; 0 starts a new document.
      lengths: int32[B], how many of a row's T tokens are real; padding stands at the right.
      start: int32[B], `State.position` before the call.
      fresh: Nothing was read before, which is known without looking at `start`.
      open: How many of the tokens count will be known later. A block that can then tell its state from
        what it has computed returns, in place of the state, a function from the timeline that says so.
    """

    positions: jax.Array
    lengths: jax.Array
    start: jax.Array
    fresh: bool = flax.struct.field(pytree_node=False, default=False)
    open: bool = flax.struct.field(pytree_node=False, default=False)

    def settle(self, state_after: Callable[["Timeline"], Any]) -> Any:
        """Returns the state after the tokens; while the timeline is `open`, what will tell it."""
        return state_after if self.open else state_after(self)

    @property
    def end(self) -> jax.Array:
        """int32[B], `State.position` after the call."""
        last = jnp.take_along_axis(
            self.positions, jnp.maximum(self.lengths - 1, 0)[:, None], axis=1
        )[:, 0]
        return jnp.where(self.lengths > 0, last + 1, self.start)
