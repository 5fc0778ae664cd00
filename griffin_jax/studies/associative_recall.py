"""Multi-query associative recall (MQAR; Zoology, arXiv:2312.04927)."""

import dataclasses

import jax
import jax.numpy as jnp

from griffin_jax.fields import check_fields, field
from griffin_jax.studies.task import Sequence, distinct


@dataclasses.dataclass(frozen=True)
class AssociativeRecall:
    """Recall the value of each of many keys, at whatever distance it is asked for.

    A row is pairs of a key and its value, and then each key once more, among fillers; behind it its
    value is due. Where it stands follows a power law: near the pairs more often than far away.

    Attributes:
      vocab_size: The filler (0), keys (the first half of the others) and values (the second).
      length: Tokens of a row, T.
      pairs: Keys, each with a value.
      fewest: Where it is above 0, a row has any number of pairs from this to `pairs`, all as likely,
        as Zoology trains on several numbers; fillers stand in the place of those that it lacks.
      power: Exponent of the law of gaps: 1 is even, less is nearer; as in Zoology, 0.01.
    """

    vocab_size: int = field(8192, at_least=5)
    length: int = field(256, at_least=4)
    pairs: int = field(16, at_least=1)
    fewest: int = field(0, at_least=0)
    power: float = field(0.01, above=0, at_most=1)

    def __post_init__(self):
        check_fields(self)
        if self.length < 3 * self.pairs:
            raise ValueError(
                f"length {self.length} is shorter than {self.pairs} pairs and their queries; give at "
                f"least {3 * self.pairs}"
            )
        if self._keys < self.pairs:
            raise ValueError(
                f"vocab_size {self.vocab_size} has {self._keys} keys for {self.pairs} pairs; give at "
                f"least {2 * self.pairs + 1}"
            )

        if self.fewest > self.pairs:
            raise ValueError(f"fewest {self.fewest} is more than pairs {self.pairs}; give no more")

    @property
    def _keys(self):
        return (self.vocab_size - 1) // 2

    def draw(self, key: jax.Array) -> Sequence:
        which, what, where, many = jax.random.split(key, 4)
        keys = 1 + distinct(which, self._keys, self.pairs)
        values = jax.random.randint(what, (self.pairs,), 1 + self._keys, self.vocab_size)
        begin = 2 * self.pairs
        room = self.length - begin
        chance = jnp.arange(1, room + 1, dtype=jnp.float32) ** (self.power - 1.0)
        places = begin + jax.random.choice(where, room, (self.pairs,), replace=False, p=chance)
        if self.fewest:
            count = jax.random.randint(many, (), self.fewest, self.pairs + 1)
            there = jnp.arange(self.pairs) < count
            keys, values = jnp.where(there, keys, 0), jnp.where(there, values, 0)
        zeros = jnp.zeros(self.length, jnp.int32)
        inputs = zeros.at[0:begin:2].set(keys).at[1:begin:2].set(values).at[places].set(keys)
        targets = zeros.at[places].set(values)
        return Sequence(inputs, targets, targets > 0)
