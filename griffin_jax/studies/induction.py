"""Induction heads (arXiv:2212.14052; figure 6b of arXiv:2402.19427)."""

import dataclasses

import jax
import jax.numpy as jnp

from griffin_jax.fields import check_fields, field
from griffin_jax.studies.task import Sequence


@dataclasses.dataclass(frozen=True)
class InductionHeads:
    """Recall what followed a special token when it stood in the row before.

    A row is random tokens with the special one somewhere in it, and the special one again at its
    end, behind which the token is due that followed it the first time.

    Attributes:
      vocab_size: The special token (0) and the others.
      length: Tokens of a row, T.
    """

    vocab_size: int = field(16, at_least=3)
    length: int = field(256, at_least=3)

    def __post_init__(self):
        check_fields(self)

    def draw(self, key: jax.Array) -> Sequence:
        tokens, where = jax.random.split(key)
        inputs = jax.random.randint(tokens, (self.length,), 1, self.vocab_size)
        place = jax.random.randint(where, (), 0, self.length - 2)
        inputs = inputs.at[place].set(0).at[-1].set(0)
        last = jnp.arange(self.length) == self.length - 1
        return Sequence(inputs, jnp.where(last, inputs[place + 1], 0), last)
