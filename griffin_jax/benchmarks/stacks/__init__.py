"""The stacks that run a model: ours and its peers, behind one interface."""

import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from griffin_jax.benchmarks.subject import OURS, Subject

Prompts = Sequence[Sequence[int]]
Mark = Callable[[int], None]

_MODULES = {
    OURS: "griffin_jax.benchmarks.stacks.griffin",
    "transformers": "griffin_jax.benchmarks.stacks.transformers_peer",
    "recurrentgemma": "griffin_jax.benchmarks.stacks.recurrentgemma_peer",
}


class Unavailable(Exception):
    """A stack cannot run here: it is not installed, too old, or lacks what is asked for."""


class Stack(Protocol):
    """A model, loaded, and the way its stack generates tokens greedily.

    Attributes:
      about: What a report says about model and stack.
      copies: How often all weights are read in a step: by every group of devices that have rows of
        their own.
    """

    about: dict[str, Any]
    copies: int

    def warm(self, prompts: Prompts, tokens: int) -> None:
        """Compiles what `generate` needs for the same arguments."""

    def generate(self, prompts: Prompts, tokens: int, mark: Mark) -> None:
        """Reads prompts of equal lengths and draws `tokens` tokens per row; nothing ends it sooner.

        `mark(n)` is called when n tokens of each row are there: 1, `tokens`, and in between as
        often as the stack can tell.
        """

    def peak_bytes(self) -> int | None:
        """Returns the most memory in use so far; see `memory.peak_bytes`."""


def open_stack(subject: Subject, seed: int = 0, **options: Any) -> Stack:
    """Returns the subject's model in its stack.

    Args:
      subject: What to load.
      seed: The seed of random weights.
      **options: For our own stack; see `stacks.griffin.GriffinStack`.

    Raises:
      Unavailable: the stack cannot run here.
      OutOfMemory: the device does not hold the weights.
    """
    module = importlib.import_module(_MODULES[subject.stack])
    if subject.stack == OURS:
        return module.GriffinStack(subject, seed, **options)
    if subject.shape is None:
        raise Unavailable(f"{subject}: peers are measured on random weights; name a preset")
    return module.Peer(subject, seed)


def require(package: str, version: str, hint: str) -> None:
    """Raises Unavailable unless a package of at least this version is installed."""
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable(f"{package} is not installed: {hint}") from None
    if _numbers(found) < _numbers(version):
        raise Unavailable(f"{package} {found} is too old, {version} is needed: {hint}")


def _numbers(version):
    parts = version.split("+")[0].split(".")
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in parts[:3])
