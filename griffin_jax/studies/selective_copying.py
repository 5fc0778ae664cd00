"""Selective copying (arXiv:2312.00752, 4.1.1; figure 6a of arXiv:2402.19427)."""

import dataclasses

import numpy as np

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

    def draw(self, rng: np.random.Generator) -> Sequence:
        count, noise = self.data_tokens, self.length - self.data_tokens
        data = rng.integers(2, self.vocab_size, count)
        inputs = np.zeros(self.length, int)
        inputs[np.sort(rng.permutation(noise)[:count])] = data
        inputs[noise:] = 1
        targets, answer = np.zeros(self.length, int), np.zeros(self.length, bool)
        targets[noise:], answer[noise:] = data, True
        return Sequence(inputs, targets, answer)
