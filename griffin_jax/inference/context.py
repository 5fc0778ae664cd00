"""A text that has been read, as a value: to go on from, to fork, to save and to load."""

import dataclasses

from griffin_jax.models.stack import AnyState


@dataclasses.dataclass(frozen=True)
class Context:
    """What a text leaves behind to go on from; nothing changes it, so a fork is the same object.

    Attributes:
      state: The model's state after the first `read` tokens, of one row, stacked where the model's
        layers are.
      tokens: All tokens of the text so far.
      read: How many of them the state has read. The rest is read first when the text goes on.
    """

    state: AnyState
    tokens: tuple[int, ...]
    read: int
