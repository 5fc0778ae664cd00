"""Induction heads (arXiv:2212.14052; figure 6b of arXiv:2402.19427)."""

import dataclasses

import numpy as np

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

    def draw(self, rng: np.random.Generator) -> Sequence:
        inputs = rng.integers(1, self.vocab_size, self.length)
        place = rng.integers(self.length - 2)
        inputs[[place, -1]] = 0
        targets, answer = np.zeros(self.length, int), np.zeros(self.length, bool)
        targets[-1], answer[-1] = inputs[place + 1], True
        return Sequence(inputs, targets, answer)
