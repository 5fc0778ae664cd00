"""What a task is: rows of tokens with exact answers, of a length and a difficulty that can be set."""

import dataclasses
import zlib
from typing import Any, Protocol, runtime_checkable

import numpy as np

_ROWS = 2**31  # as many as a shuffle numbers


@dataclasses.dataclass(frozen=True)
class Sequence:
    """One example.

    Attributes:
      inputs: int[T], what a model reads.
      targets: int[T], the right next token behind each input, where it counts.
      answer: bool[T], where it counts: what is trained, and what an accuracy is of.
    """

    inputs: np.ndarray
    targets: np.ndarray
    answer: np.ndarray


@runtime_checkable
class Task(Protocol):
    """A frozen dataclass whose fields are the task's knobs; `dataclasses.replace` makes it harder.

    Attributes:
      vocab_size: Ids are 0 to this, exclusive.
      length: Tokens of a row, T.
    """

    vocab_size: int
    length: int

    def draw(self, rng: np.random.Generator) -> Sequence:
        """Draws one example of `length` tokens, which depends on the generator alone."""
        ...


class TaskRows:
    """A task's examples as rows of `training.train`: example i is drawn from (seed, split, i).

    A split is a name; rows of two splits have nothing to do with one another.
    """

    def __init__(self, task: Task, seed: int, split: str, count: int = _ROWS):
        self.task, self.seed, self.split, self.count = task, seed, split, count

    def __len__(self) -> int:
        return self.count

    def row(self, epoch: int, index: int) -> dict[str, Any]:
        """Example `index`; every epoch has others."""
        rng = np.random.default_rng([self.seed, zlib.crc32(self.split.encode()), epoch, index])
        example = self.task.draw(rng)
        return {
            "inputs": example.inputs.astype(np.int32),
            "targets": example.targets.astype(np.int32),
            "positions": np.arange(self.task.length, dtype=np.int32),
            "mask": example.answer.astype(np.float32),
            "start": np.asarray(index, np.int64),
        }

    def describe(self, starts: np.ndarray) -> str:
        return f"examples {sorted(map(int, starts))} of {self.task}, split {self.split!r}"

    def fingerprint(self) -> str:
        return f"{self.task}, seed {self.seed}, split {self.split}"
