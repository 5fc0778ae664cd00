"""What reading a checkpoint means, whatever its format."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from griffin_jax.checkpoints.placement import Shardings
from griffin_jax.config import GriffinConfig


class Source(Protocol):
    """A checkpoint, opened: names and shapes are checked, and no weight is read.

    A format is one class of this kind, a function that opens a folder with it, and a row in
    `checkpoint.FORMATS`.

    Attributes:
      config: The model's shape.
      quantization: The settings of packed weights as Hugging Face's `quantization_config` has them,
        or None.
      nbytes: The size of all weights as stored.
      folder: The checkpoint's folder, in which a tokenizer lies if there is one.
    """

    config: GriffinConfig
    quantization: dict[str, Any] | None
    folder: Path

    @property
    def nbytes(self) -> int: ...

    def stored_name(self, path: str) -> str:
        """Returns the checkpoint's own name of a leaf, for messages."""
        ...

    def leaves(self, shardings: Shardings | None = None) -> Iterator[tuple[str, Any]]:
        """Yields each leaf's path and its value in host memory, in the model's order.

        Args:
          shardings: Where each array will lie. Each process then reads its part alone, where the
            format is made of such parts.

        Raises:
          CheckpointError: a file is damaged or changes while it is read.
        """
        ...
