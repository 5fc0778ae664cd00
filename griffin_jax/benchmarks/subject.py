"""A model that is measured: a preset with random weights, or a folder."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp

import griffin_jax
from griffin_jax.benchmarks.memory import meeting_limits, tree_bytes
from griffin_jax.benchmarks.random_weights import random_params
from griffin_jax.benchmarks.timing import compilation
from griffin_jax.config import DTYPES, PRESETS, preset
from griffin_jax.language_model import LanguageModel
from griffin_jax.quantization import QuantizationConfig

PACKED = ("nf4", "fp4", "nf4-double", "fp4-double")


@dataclasses.dataclass(frozen=True)
class Subject:
    """Which model, in which weights, computing in what.

    Attributes:
      model: A preset, which gets random weights, or a folder or name that `griffin_jax.load` takes.
      weights: A dtype or a 4-bit type ("nf4", "nf4-double", ...).
      dtype: Of activations; for a dtype of weights it is that one.
    """

    model: str
    weights: str
    dtype: str

    @classmethod
    def parse(cls, text: str) -> "Subject":
        """Of MODEL:WEIGHTS or MODEL:WEIGHTS:DTYPE, such as "recurrentgemma-9b:nf4".

        Raises:
          ValueError: the text is none of these.
        """
        model, *rest = text.split(":")
        weights = rest[0] if rest else "bfloat16"
        dtype = rest[1] if len(rest) > 1 else (weights if weights in DTYPES else "bfloat16")
        if len(rest) > 2 or weights not in (*DTYPES, *PACKED) or dtype not in DTYPES:
            raise ValueError(
                f"model {text!r} must be MODEL:WEIGHTS or MODEL:WEIGHTS:DTYPE, with weights one of "
                f"{', '.join((*DTYPES, *PACKED))} and dtype one of {', '.join(DTYPES)}"
            )
        return cls(model, weights, dtype)

    @property
    def quantization(self) -> QuantizationConfig | None:
        """How linear weights are packed; None where they are not."""
        if self.weights not in PACKED:
            return None
        quant_type, _, double = self.weights.partition("-")
        return QuantizationConfig(
            bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=bool(double)
        )

    def load(self, seed: int = 0) -> tuple[LanguageModel, dict[str, Any]]:
        """The model on the device, and what a report says about it.

        Raises:
          OutOfMemory: the device does not hold the weights.
          ValueError: the model is neither a preset nor a folder.
        """
        begin = time.perf_counter()
        random = self.model in PRESETS
        with compilation() as compiled, meeting_limits():
            if random:
                config = preset(self.model)
                params = random_params(config, self.dtype, self.quantization, seed)
                lm = LanguageModel(config, params, dtype=jnp.dtype(self.dtype))
            else:
                lm = griffin_jax.load(self.model, dtype=self.dtype, quantization=self.quantization)
                lm = dataclasses.replace(lm, tokenizer=None)  # no token may end a measured text
            jax.block_until_ready(lm.params)
        return lm, self.to_dict() | {
            "random_weights": random,
            "weight_bytes": tree_bytes(lm.params),
            "make_seconds": time.perf_counter() - begin,
            "make_compile": compiled.to_dict(),
        }

    def to_dict(self) -> dict[str, str]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)
