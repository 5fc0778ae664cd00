"""The formats of packed weights in one table; whoever packs, stores or draws weights asks its rows."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.typing import DTypeLike

from griffin_jax.errors import CheckpointError
from griffin_jax.quantization import four_bits, int8
from griffin_jax.quantization.config import QuantizationConfig
from griffin_jax.weight import Weight


class Format(Protocol):
    """What a module of this package offers for its kind of weights."""

    @property
    def MARK(self) -> str:
        """What a checkpoint always has beside a packed weight, in words."""
        ...

    @staticmethod
    def pack(
        weight: jax.Array | np.ndarray,
        settings: QuantizationConfig,
        *,
        block_size: int = 64,
        name: str = "weight",
    ) -> Weight:
        """Packs a weight [out, in].

        Args:
          weight: float32, float16 or bfloat16.
          settings: How to pack it.
          block_size: Weights per scale, where settings of the format leave that open.
          name: What errors call the weight.

        Raises:
          ValueError: the weight is not finite or has no elements, or there are no such blocks.
        """
        ...

    @staticmethod
    def abstract(
        shape: tuple[int, ...],
        dtype: DTypeLike,
        settings: QuantizationConfig,
        *,
        block_size: int = 64,
    ) -> Weight:
        """Returns what `pack` gives for such a weight, with jax.ShapeDtypeStruct leaves."""
        ...

    @staticmethod
    def noise(key: jax.Array, weight: Any) -> Weight:
        """Draws a weight of the shapes of an abstract one, of about the size that layers begin with."""
        ...

    @staticmethod
    def settings_of(weight: Any) -> QuantizationConfig:
        """Returns settings that give such a weight."""
        ...

    @staticmethod
    def metadata(weight: Any) -> dict[str, Any]:
        """Returns plain values for JSON that, with its shape, tell the structure of a weight."""
        ...

    @staticmethod
    def from_metadata(shape: tuple[int, ...], metadata: Mapping[str, Any]) -> Weight:
        """Returns the abstract weight that `metadata` tells of.

        Raises:
          KeyError, TypeError, ValueError: they are not what `metadata` returns.
        """
        ...

    @staticmethod
    def weight_of(name: str) -> str | None:
        """Returns the weight that bitsandbytes stores an array of this name beside; None for others."""
        ...

    @staticmethod
    def to_arrays(weight: Any, /, name: str, storage: str = "uint8") -> dict[str, np.ndarray]:
        """Returns the arrays that bitsandbytes stores for a weight of this name.

        Args:
          weight: The weight.
          name: Its name in the checkpoint, such as "model.layers.0.mlp_block.up_proj.weight".
          storage: `bnb_4bit_quant_storage`.

        Raises:
          CheckpointError: the packed bytes are no whole number of `storage` elements.
        """
        ...

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray], name: str) -> Weight:
        """Returns the weight of this name among the arrays of a checkpoint, whose memory it shares.

        Raises:
          CheckpointError: an array is missing or contradicts another.
        """
        ...


# A row for each type of weights: `QuantizationConfig.quant_type`, and the weights' own.
FORMATS: dict[str, Format] = {"nf4": four_bits, "fp4": four_bits, int8.TYPE: int8}


def format_of_type(quant_type: Any) -> Format:
    """Returns the row of a type of weights.

    Raises:
      ValueError: there is none.
    """
    if quant_type not in FORMATS:
        raise ValueError(f"no weight format {quant_type!r}; there are {', '.join(FORMATS)}")
    return FORMATS[quant_type]


def format_at(name: str) -> tuple[Format, str] | None:
    """Returns the format that an array of a checkpoint is a part of, by its name, and the weight's name;
    None of an array by itself.
    """
    for form in dict.fromkeys(FORMATS.values()):
        if (weight := form.weight_of(name)) is not None:
            return form, weight
    return None


def read_packed(arrays: Mapping[str, np.ndarray], name: str) -> Weight:
    """Returns the weight of this name, in whichever format its parts are.

    Args:
      arrays: The weight itself and its parts, at least one.
      name: The weight's name.

    Raises:
      CheckpointError: the parts are incomplete, contradict each other or are those of two formats.
    """
    found: dict[Format, str] = {}  # and a part
    for part in sorted(arrays):
        if (at := format_at(part)) is not None:
            found.setdefault(at[0], part)
    if len(found) > 1:
        raise CheckpointError(
            f"{name} has parts of two formats, {' and '.join(found.values())}: a weight is packed in "
            "one way"
        )
    return next(iter(found)).from_arrays(arrays, name)
