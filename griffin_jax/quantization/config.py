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
    True, `bnb_4bit_quant_type` "nf4" and `bnb_4bit_compute_dtype` "bfloat16".

    Attributes:
      load_in_4bit: Quantize linear layers to 4 bits.
      load_in_8bit: LLM.int8; refused when True.
      bnb_4bit_quant_type: "nf4" or "fp4".
      bnb_4bit_use_double_quant: Quantize the scales to 8 bits as well.
      bnb_4bit_compute_dtype: What products are computed in, a name; see `compute_dtype`.
      bnb_4bit_quant_storage: What a checkpoint calls the packed bytes: "uint8", "int8", "float16",
        "bfloat16", "float32" or "float64". The bytes are the same.
      llm_int8_skip_modules: Modules to leave alone; None leaves the output head. See `skips`.
      llm_int8_threshold: LLM.int8 only: kept, without effect on 4 bits. So are the next two.
      llm_int8_enable_fp32_cpu_offload: As above.
      llm_int8_has_fp16_weight: As above.
    """

    load_in_4bit: bool = True
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
        if self.load_in_8bit:
            raise ValueError("load_in_8bit: LLM.int8 is not supported; use load_in_4bit instead")
        if not self.load_in_4bit:
            raise ValueError("load_in_4bit is false: there is nothing to quantize")

    @property
    def quant_type(self) -> str:
        """The type of the weights, "nf4" or "fp4": a key of `quantization.FORMATS`."""
        return self.bnb_4bit_quant_type

    @property
    def name(self) -> str:
        """A short name, such as "nf4" or "nf4-double" where scales are quantized, too."""
        return self.quant_type + ("-double" if self.bnb_4bit_use_double_quant else "")

    def compute_dtype(self, requested: Any = None) -> np.dtype:
        """Returns what the model computes in.

        That is `requested` if the caller asks for a dtype, and `bnb_4bit_compute_dtype` otherwise,
        with bfloat16 in place of float16: published checkpoints name float16 for the sake of older
        GPUs, and its range, up to 65,504, is too small for some models. It has to be requested.

        Raises:
          ValueError: `requested` is not float32, float16 or bfloat16.
        """
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
          ValueError: a field is unknown and not off, has a wrong value or contradicts another, the
            method is not bitsandbytes, or 8 bits are asked for.
        """
        values = read_settings(values, _RULES, "quantization_config")
        values.pop("quant_method", None)
        for name in ("load_in_4bit", "load_in_8bit"):
            private = values.pop(f"_{name}", None)
            if private is not None and values.setdefault(name, private) != private:
                raise ValueError(f"quantization_config: {name} and _{name} contradict each other")
        # It has no effect on 4 bits, and transformers wants it written as a float.
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
    )
}
