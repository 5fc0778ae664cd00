"""Places in a computation: what it goes through on its way that a reader may want to see or change.

A plain definition calls `at(name, value)` for what it computes on the way, and goes on with what that
returns. Who wants to see nothing gives `unseen`; a module's is `models.places.place`.
"""

from collections.abc import Callable

import jax

At = Callable[..., jax.Array]


def unseen(
    name: str, value: jax.Array, settle: Callable[[jax.Array], jax.Array] | None = None
) -> jax.Array:
    """Returns the value as it is.

    Args:
      name: What the place is called.
      value: What is there.
      settle: From what somebody put there to what is there then, where the two are not the same.
    """
    del name, settle
    return value
