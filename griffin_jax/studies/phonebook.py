"""Phonebook lookup (arXiv:2402.01032; figure 6c of arXiv:2402.19427)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.fields import check_fields, field
from griffin_jax.studies.task import Sequence, distinct

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
      fewest: Where it is above 0, a row has any number of entries from this to as many as there is
        room for, all as likely, with the room that is left over in front.
    """

    length: int = field(512, at_least=1)
    letters: int = field(26, at_least=2)
    name: int = field(3, at_least=1)
    number: int = field(4, at_least=1)
    train_examples: bool = False
    fewest: int = field(0, at_least=0)

    def __post_init__(self):
        check_fields(self)
        if self.entries < _EXAMPLES:
            raise ValueError(
                f"length {self.length} is shorter than {_EXAMPLES} entries and as many questions; "
                f"give at least {2 * _EXAMPLES * self.entry + 1}"
            )
        if self.fewest and not _EXAMPLES <= self.fewest <= self.entries:
            raise ValueError(
                f"fewest {self.fewest} must be from {_EXAMPLES} to the {self.entries} entries of a row"
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
    def entry(self) -> int:
        """Returns the tokens of an entry."""
        return self.name + self.number + 2

    @property
    def entries(self) -> int:
        """The number of names in the book."""
        return (self.length - 1) // self.entry - _EXAMPLES

    @property
    def question(self) -> int:
        """Returns the tokens from the mark behind the book to the last one before the number."""
        return 1 + (_EXAMPLES - 1) * self.entry + self.name + 1

    def with_entries(self, count: int) -> "Phonebook":
        """Returns the task of books of so many names, without room in front."""
        length = (count + _EXAMPLES) * self.entry + 1
        return dataclasses.replace(self, length=length, fewest=0)

    def draw(self, key: jax.Array) -> Sequence:
        count = self.entries
        which, what, asking, many = jax.random.split(key, 4)
        chosen = distinct(which, self.letters**self.name, count)
        places = self.letters ** jnp.arange(self.name)
        names = chosen[:, None] // places[None] % self.letters
        digits = jax.random.randint(what, (count, self.number), 0, _DIGITS)
        separators = jnp.ones((count, 1), jnp.int32)
        entries = _SEPARATORS + _DIGITS + names, separators, _SEPARATORS + digits, 0 * separators
        book = jnp.concatenate(entries, axis=1)
        order = jax.random.uniform(asking, (count,))
        if self.fewest:
            missing = count - jax.random.randint(many, (), self.fewest, count + 1)
            there = jnp.arange(count) >= missing
            book, order = jnp.where(there[:, None], book, 0), jnp.where(there, order, 2.0)
        asked = book[jnp.argsort(order)[:_EXAMPLES]]
        text = jnp.concatenate([book.ravel(), jnp.array([2]), asked.ravel()])
        text = jnp.pad(text, (self.length + 1 - len(text), 0))
        answer = np.zeros((_EXAMPLES, self.entry), bool)
        answer[slice(None) if self.train_examples else -1, self.name + 1 : -1] = True
        answer = jnp.asarray(np.pad(answer.ravel(), (self.length + 1 - answer.size, 0)))
        return Sequence(text[:-1], text[1:], answer[1:])
