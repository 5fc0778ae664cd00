"""What an engine has dispatched and not received yet."""

import dataclasses

import jax
import numpy as np

from griffin_jax.inference.request import Request


@dataclasses.dataclass
class Burst:
    """What the device draws.

    Attributes:
      requests: That of each row; None where there is none.
      steps: How many steps were asked for.
      drawn: As `draw_burst` returns it.
      begun: When it was dispatched.
      drafted: As `draw_drafted` returns it; None for a burst without drafts.
    """

    requests: tuple[Request | None, ...]
    steps: int
    drawn: tuple[jax.Array, ...]
    begun: float
    drafted: jax.Array | np.ndarray | None = None

    @property
    def is_there(self) -> bool:
        """Whether the device has drawn it."""
        return _is_there(self.drawn[0])


@dataclasses.dataclass
class Reading:
    """A call that reads.

    Attributes:
      requests: Those whose prompts it reads.
      done: A number that is there when it is done.
      error: Why there was no call after all.
    """

    requests: tuple[Request, ...]
    done: jax.Array | None = None
    error: Exception | None = None

    @property
    def is_there(self) -> bool:
        """Whether the device is done with it."""
        return self.done is None or _is_there(self.done)


def _is_there(array: jax.Array) -> bool:
    return array.is_ready()  # pyright: ignore[reportAttributeAccessIssue]  # which its stub lacks
