"""Tasks: rows of tokens with exact answers, of a length and a difficulty that can be set."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]


class Sequence(NamedTuple):
    """One example.

    Attributes:
      inputs: int32[T], what a model reads.
      targets: int32[T], the right next token behind each input, where it counts.
      answer: bool[T], where it counts: what is trained, and what an accuracy is of.
      positions: int32[T], each input's place in its document; None where the row is one document.
    """

    inputs: jax.Array
    targets: jax.Array
    answer: jax.Array
    positions: jax.Array | None = None


@runtime_checkable
class Task(Protocol):
    """A frozen dataclass whose fields are the task's knobs; `dataclasses.replace` makes it harder.

    A task that reads data has a method `arrays(split)` too, which returns a tuple of arrays that
    `draw` is given behind its key, so that they are arguments of a program and no part of it.

    Attributes:
      vocab_size: Ids are 0 to this, exclusive.
      length: Tokens of a row, T.
    """

    vocab_size: int
    length: int

    def draw(self, key: jax.Array) -> Sequence:
        """Draws one example of `length` tokens, which depends on the key alone; it is compiled."""
        ...


@runtime_checkable
class LongText(Task, Protocol):
    """A task whose rows are a text, a question about it, and the answer, of any length of the text.

    Attributes:
      entry: Tokens of a part of the text; chunks are cut between such parts.
      question: Tokens of the question.
      number: Tokens of the answer.
    """

    entry: int
    question: int
    number: int

    def with_entries(self, count: int) -> "LongText":
        """Returns the task of texts of so many parts."""
        ...


def arrays_of(task: Any, split: str) -> tuple[jax.Array, ...]:
    """Returns what `draw` is given behind its key for examples of "train" or "heldout"."""
    return task.arrays(split) if hasattr(task, "arrays") else ()


def draw_batch(task: Any, key: jax.Array, count: int, arrays: tuple = ()) -> Batch:
    """Draws examples as a batch of `training.token_losses`, [count, T] each."""
    keys = jax.random.split(key, count)
    drawn = jax.vmap(lambda key: task.draw(key, *arrays))(keys)
    positions = drawn.positions
    if positions is None:  # the same in all rows, which kernels can see
        positions = jnp.broadcast_to(jnp.arange(task.length, dtype=jnp.int32), drawn.inputs.shape)
    return {
        "inputs": drawn.inputs.astype(jnp.int32),
        "targets": drawn.targets.astype(jnp.int32),
        "positions": positions,
        "mask": drawn.answer.astype(jnp.float32),
    }


def distinct(key: jax.Array, size: int, count: int) -> jax.Array:
    """Draws different numbers below `size`, in any order, at the cost of sorting `count` of them.

    Sorted numbers below size - count + 1, which may be equal, are moved apart by their rank. Every
    number may come, those of a set slightly less evenly than in a draw without replacement.
    """
    numbers, order = jax.random.split(key)
    spread = jnp.sort(jax.random.randint(numbers, (count,), 0, size - count + 1))
    return jax.random.permutation(order, spread + jnp.arange(count))
