"""A needle in a haystack: a key and its value, hidden once in a long text and asked for at its end."""

import dataclasses

import jax
import jax.numpy as jnp

from griffin_jax.fields import check_fields, field
from griffin_jax.studies.task import Sequence, distinct

_ASKED = 0  # the mark behind the text, before the key whose value is due


@dataclasses.dataclass(frozen=True)
class Needle:
    """Say the value of a key that stands once in a text of fillers.

    A row is a text of fillers in which needles are hidden, each a key and behind it its value; then come
    a mark and the key of one needle, whose value is due. Keys, values and fillers have tokens of
    their own.

    Attributes:
      length: Tokens of a row, T.
      fillers: Different tokens of the text.
      keys: Different keys.
      values: Different tokens of values.
      number: Tokens of a value.
      others: Needles of other keys that are hidden in the text, too.
      place: Where the needle stands that is asked for, from 0, the text's beginning, to 1, its end; None
        for anywhere.
    """

    length: int = field(256, at_least=1)
    fillers: int = field(16, at_least=1)
    keys: int = field(8, at_least=1)
    values: int = field(10, at_least=2)
    number: int = field(2, at_least=1)
    others: int = field(0, at_least=0)
    place: float | None = field(None, at_least=0, at_most=1)

    def __post_init__(self):
        check_fields(self)
        if self._text < (1 + self.others) * self._needle:
            raise ValueError(
                f"length {self.length} is shorter than {1 + self.others} needles of {self._needle} "
                f"tokens and the question; give at least "
                f"{(1 + self.others) * self._needle + self.question + self.number - 1}"
            )
        if self.keys <= self.others:
            raise ValueError(
                f"keys {self.keys} are too few for a needle and {self.others} others; give at least "
                f"{self.others + 1}"
            )

    @property
    def vocab_size(self) -> int:
        return 1 + self.keys + self.values + self.fillers

    @property
    def entry(self) -> int:
        """Returns the tokens of a part of the text that chunks do not cut: a needle may be cut."""
        return 1

    @property
    def question(self) -> int:
        """Returns the tokens from the mark behind the text to the last one before the value."""
        return 2

    @property
    def _needle(self):
        return 1 + self.number

    @property
    def _text(self):
        return self.length + 1 - self.question - self.number

    def with_entries(self, count: int) -> "Needle":
        """Returns the task of texts of so many tokens."""
        return dataclasses.replace(self, length=count + self.question + self.number - 1)

    def draw(self, key: jax.Array) -> Sequence:
        which, what, around, where, hidden = jax.random.split(key, 5)
        count = 1 + self.others
        keys = 1 + distinct(which, self.keys, count)
        values = 1 + self.keys + jax.random.randint(what, (count, self.number), 0, self.values)
        needles = jnp.concatenate([keys[:, None], values], axis=1)
        rest = self._text - self._needle
        # The other needles, in the text without the one that is asked for: `distinct` places that are
        # moved apart by the needles before them.
        text = jax.random.randint(around, (rest,), 1 + self.keys + self.values, self.vocab_size)
        starts = jnp.zeros(0, jnp.int32)
        if self.others:
            room = rest - self.others * self.number
            starts = jnp.sort(distinct(hidden, room, self.others))
            starts = starts + self.number * jnp.arange(self.others)
            places = starts[:, None] + jnp.arange(self._needle)[None]
            text = text.at[places].set(needles[1:])
        # Where that one comes; behind another that it would cut.
        if self.place is None:
            place = jax.random.randint(where, (), 0, rest + 1)
        else:
            place = jnp.int32(round(self.place * rest))
        cut = (starts < place) & (place < starts + self._needle)
        place = jnp.maximum(place, jnp.max(jnp.where(cut, starts + self._needle, 0), initial=0))
        index = jnp.arange(self._text)
        before, after = jnp.pad(text, (0, self._needle)), jnp.pad(text, (self._needle, 0))
        text = jnp.where(index < place, before, after)
        text = jax.lax.dynamic_update_slice(text, needles[0], (place,))
        row = jnp.concatenate([text, jnp.array([_ASKED]), needles[0]])
        answer = jnp.arange(self.length + 1) > self.length - self.number
        return Sequence(row[:-1], row[1:], answer[1:])
