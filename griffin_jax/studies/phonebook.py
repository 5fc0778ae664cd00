"""Phonebook lookup (arXiv:2402.01032; figure 6c of arXiv:2402.19427)."""

import dataclasses

import numpy as np

from griffin_jax.fields import check_fields, field
from griffin_jax.studies.task import Sequence

_SEPARATORS = 3  # 0: the end of an entry, 1: between name and number, 2: the questions begin
_DIGITS = 10
_EXAMPLES = 3  # two to show what is asked for, and the question


@dataclasses.dataclass(frozen=True)
class Phonebook:
    """Look up a number in a list of names and numbers.

    A row is entries, each a name of letters, a separator, a number of digits and a separator; as
    many as there is room for, with room that is left over in front. Then come two names with their
    numbers, as examples, and one more name, whose number is due.

    Attributes:
      length: Tokens of a row, T.
      letters: Different letters of names.
      name: Letters of a name.
      number: Digits of a number.
      train_examples: The numbers of the two examples count as answers, too.
    """

    length: int = field(512, at_least=1)
    letters: int = field(26, at_least=2)
    name: int = field(3, at_least=1)
    number: int = field(4, at_least=1)
    train_examples: bool = False

    def __post_init__(self):
        check_fields(self)
        if self.entries < _EXAMPLES:
            raise ValueError(
                f"length {self.length} is shorter than {_EXAMPLES} entries and as many questions; "
                f"give at least {2 * _EXAMPLES * self._entry + 1}"
            )
        if self.letters**self.name < self.entries:
            raise ValueError(
                f"{self.letters} letters make {self.letters**self.name} names of {self.name}, for "
                f"{self.entries} entries; give longer names"
            )

    @property
    def vocab_size(self) -> int:
        return _SEPARATORS + _DIGITS + self.letters

    @property
    def _entry(self):
        return self.name + self.number + 2

    @property
    def entries(self) -> int:
        """How many names are in the book."""
        return (self.length - 1) // self._entry - _EXAMPLES

    def draw(self, rng: np.random.Generator) -> Sequence:
        count = self.entries
        chosen = rng.choice(self.letters**self.name, count, replace=False)
        names = chosen[:, None] // self.letters ** np.arange(self.name) % self.letters
        digits = rng.integers(_DIGITS, size=(count, self.number))
        book = np.full((count, self._entry), 0)
        book[:, : self.name] = _SEPARATORS + _DIGITS + names
        book[:, self.name] = 1
        book[:, self.name + 1 : -1] = _SEPARATORS + digits
        asked = book[rng.choice(count, _EXAMPLES, replace=False)]
        text = np.concatenate([book.ravel(), [2], asked.ravel()])
        text = np.concatenate([np.zeros(self.length + 1 - len(text), int), text])
        answer = np.zeros((_EXAMPLES, self._entry), bool)
        answer[slice(None) if self.train_examples else -1, self.name + 1 : -1] = True
        whole = np.concatenate([np.zeros(self.length + 1 - answer.size, bool), answer.ravel()])
        return Sequence(text[:-1], text[1:], whole[1:])
