"""Selective copying (arXiv:2312.00752, 4.1.1; figure 6a of arXiv:2402.19427)."""

import dataclasses

import jax
import jax.numpy as jnp

from griffin_jax.fields import check_fields, field
from griffin_jax.studies.task import Sequence


@dataclasses.dataclass(frozen=True)
class SelectiveCopying:
    """Copy data tokens that stand at random places among noise, in their order.

    A row is noise with data tokens in it, and then as many markers, behind each of which the next
    data token is due.

    Attributes:
      vocab_size: Data tokens, one for noise (0) and one for the marker (1).
      length: Tokens of a row, T, the markers included.
      data_tokens: How many there are to copy.
    """

    vocab_size: int = field(16, at_least=3)
    length: int = field(1024, at_least=2)
    data_tokens: int = field(16, at_least=1)

    def __post_init__(self):
        check_fields(self)
        if self.length < 2 * self.data_tokens:
            raise ValueError(
                f"length {self.length} is shorter than {self.data_tokens} data tokens and as many "
                f"markers; give at least {2 * self.data_tokens}"
            )

    def draw(self, key: jax.Array) -> Sequence:
        count, noise = self.data_tokens, self.length - self.data_tokens
        tokens, where = jax.random.split(key)
        data = jax.random.randint(tokens, (count,), 2, self.vocab_size)
        places = jnp.sort(jax.random.permutation(where, noise)[:count])
        zeros = jnp.zeros(self.length, jnp.int32)
        inputs = zeros.at[places].set(data).at[noise:].set(1)
        return Sequence(inputs, zeros.at[noise:].set(data), jnp.arange(self.length) >= noise)
