"""The `quantization_config` of Hugging Face checkpoints that bitsandbytes quantized."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from griffin_jax.config import DTYPES, check_dtype
from griffin_jax.fields import check_fields, field
from griffin_jax.foreign_settings import Rule, obeyed, only, read_settings

_QUANT_TYPES = ("nf4", "fp4")
INT8 = "int8"
_STORAGE_DTYPES = ("uint8", "int8", "float16", "bfloat16", "float32", "float64")
# What a file means that leaves these out; QuantizationConfig() itself means NF4 in bfloat16.
_FILE_DEFAULTS = {
    "load_in_4bit": False,
    "bnb_4bit_quant_type": "fp4",
    "bnb_4bit_compute_dtype": "float32",
}


@dataclasses.dataclass(frozen=True)
class QuantizationConfig:
    """How linear layers are quantized: transformers' BitsAndBytesConfig, field by field.

    Names, meanings and defaults are those of transformers, but for three defaults: `load_in_4bit` is
    True unless `load_in_8bit` is, `bnb_4bit_quant_type` "nf4" and `bnb_4bit_compute_dtype`
    "bfloat16".

    Attributes:
      load_in_4bit: Quantize linear layers to 4 bits; None stands for what `load_in_8bit` is not.
      load_in_8bit: Quantize them to 8 bits, as LLM.int8 stores them (arXiv:2208.07339).
      bnb_4bit_quant_type: "nf4" or "fp4".
      bnb_4bit_use_double_quant: Quantize the scales to 8 bits as well.
      bnb_4bit_compute_dtype: What products are computed in, a name; see `compute_dtype`.
      bnb_4bit_quant_storage: What a checkpoint calls the packed bytes: "uint8", "int8", "float16",
        "bfloat16", "float32" or "float64". The bytes are the same.
      llm_int8_skip_modules: Modules to leave alone; None leaves the output head. See `skips`.
      llm_int8_threshold: It is kept for transformers, which rounds activations to 8 bits where they
        stay below it. Activations are not rounded here, so that there are no outliers to spare.
      llm_int8_enable_fp32_cpu_offload: It is kept for transformers, without effect here.
      llm_int8_has_fp16_weight: It is kept as well; True is refused with `load_in_8bit`, for it means
        weights that are not quantized until they are used.
    """

    load_in_4bit: bool | None = None
    load_in_8bit: bool = False
    bnb_4bit_quant_type: str = field("nf4", one_of=_QUANT_TYPES)
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_compute_dtype: str = field("bfloat16", one_of=DTYPES)
    bnb_4bit_quant_storage: str = field("uint8", one_of=_STORAGE_DTYPES)
    llm_int8_skip_modules: tuple[str, ...] | None = None
    llm_int8_threshold: float = 6.0
    llm_int8_enable_fp32_cpu_offload: bool = False
    llm_int8_has_fp16_weight: bool = False

    def __post_init__(self):
        check_fields(self)
        _check_patterns(self.llm_int8_skip_modules or ())
        if self.load_in_4bit is None:
            object.__setattr__(self, "load_in_4bit", not self.load_in_8bit)
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError(
                "load_in_4bit and load_in_8bit are both true: weights are packed in one way; choose one"
            )
        if not (self.load_in_4bit or self.load_in_8bit):
            raise ValueError(
                "load_in_4bit and load_in_8bit are both false: there is nothing to quantize"
            )
        if self.load_in_8bit and self.llm_int8_has_fp16_weight:
            raise ValueError(
                "llm_int8_has_fp16_weight is true: weights that are stored in 16 bits and quantized "
                "as they are used are not supported; load_in_8bit needs it to be false"
            )

    @property
    def quant_type(self) -> str:
        """The type of the weights, "nf4", "fp4" or "int8": a key of `quantization.FORMATS`."""
        return INT8 if self.load_in_8bit else self.bnb_4bit_quant_type

    @property
    def name(self) -> str:
        """A short name, such as "nf4" or "nf4-double" where scales are quantized, too."""
        double = self.load_in_4bit and self.bnb_4bit_use_double_quant
        return self.quant_type + ("-double" if double else "")

    def compute_dtype(self, requested: Any = None) -> np.dtype | None:
        """Returns what the model computes in; None where neither the caller nor the settings say it.

        That is `requested` if the caller asks for a dtype, and `bnb_4bit_compute_dtype` otherwise,
        with bfloat16 in place of float16: published checkpoints name float16 for the sake of older
        GPUs, and its range, up to 65,504, is too small for some models. It has to be requested.
        Settings of 8 bits say nothing.

        Raises:
          ValueError: `requested` is not float32, float16 or bfloat16.
        """
        if requested is None and self.load_in_8bit:
            return None
        if requested is None:
            name = self.bnb_4bit_compute_dtype
            return jnp.dtype("bfloat16" if name == "float16" else name)
        return check_dtype(requested)

    def skips(self, module: str) -> bool:
        """Returns whether a linear layer is left alone, by its name, as transformers decides it.

        It is if an entry of `llm_int8_skip_modules`, a regular expression, matches the beginning of
        the name ("model.layers.1" also matches layer 10) or if the name ends with it. By default
        the output head "lm_head" is; a list replaces that default.
        """
        patterns = self.llm_int8_skip_modules
        return any(
            re.match(pattern, module) or module.endswith(pattern)
            for pattern in (("lm_head",) if patterns is None else patterns)
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON object that transformers writes, keys in its order."""
        values = dataclasses.asdict(self)
        if self.llm_int8_skip_modules is not None:
            values["llm_int8_skip_modules"] = list(self.llm_int8_skip_modules)
        values |= {
            "_load_in_4bit": self.load_in_4bit,
            "_load_in_8bit": self.load_in_8bit,
            "quant_method": "bitsandbytes",
        }
        return dict(sorted(values.items()))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "QuantizationConfig":
        """Returns the inverse of `to_dict`; what a file leaves out has the default of transformers.

        Raises:
          ValueError: a field is unknown and not off, has a wrong value or contradicts another, or the
            method is not bitsandbytes.
        """
        values = read_settings(values, _RULES, "quantization_config")
        values.pop("quant_method", None)
        for name in ("load_in_4bit", "load_in_8bit"):
            private = values.pop(f"_{name}", None)
            if private is not None and values.setdefault(name, private) != private:
                raise ValueError(f"quantization_config: {name} and _{name} contradict each other")
        # transformers wants it written as a float.
        if isinstance(threshold := values.get("llm_int8_threshold"), int):
            values["llm_int8_threshold"] = float(threshold)
        try:
            return cls(**(_FILE_DEFAULTS | values))
        except ValueError as error:
            raise ValueError(f"quantization_config: {error}") from None


_RULES: dict[str, Rule] = {
    **{entry.name: obeyed for entry in dataclasses.fields(QuantizationConfig)},
    "_load_in_4bit": obeyed,
    "_load_in_8bit": obeyed,
    "quant_method": only("bitsandbytes"),
}


def _check_patterns(patterns: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"llm_int8_skip_modules: {pattern!r} is not a regular expression: {error}"
            ) from None


# Ways to pack by their short names, which commands and benchmarks take.
PACKINGS: dict[str, QuantizationConfig] = {
    settings.name: settings
    for settings in (
        QuantizationConfig(),
        QuantizationConfig(bnb_4bit_quant_type="fp4"),
        QuantizationConfig(bnb_4bit_use_double_quant=True),
        QuantizationConfig(bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True),
        QuantizationConfig(load_in_8bit=True),
    )
}
