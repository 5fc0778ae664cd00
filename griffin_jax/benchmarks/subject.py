"""The subject of a measurement: a model, its weights, the dtype that it computes in, and the stack that runs it."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import griffin_jax
from griffin_jax import checkpoints
from griffin_jax.benchmarks import memory
from griffin_jax.benchmarks.timing import compilation
from griffin_jax.checkpoints.random_weights import abstract_weights, random_params
from griffin_jax.config import DTYPES, PRESETS, GriffinConfig, preset
from griffin_jax.host import available_memory
from griffin_jax.language_model import LanguageModel
from griffin_jax.models import is_stacked, prepare_params
from griffin_jax.quantization import PACKINGS, QuantizationConfig
from griffin_jax.sharding import check_config

OURS = "griffin_jax"
STACKS = (OURS, "transformers", "recurrentgemma")

Shapes = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model in certain weights under a certain stack.

    Attributes:
      model: A preset or a name in `shapes`, which get random weights, or a folder or name that
        `griffin_jax.load` takes.
      weights: A dtype or a key of `quantization.PACKINGS` ("nf4", "nf4-double", "int8", ...). A folder
        of packed weights is measured packed only under such a key, unpacked under a dtype.
      dtype: The dtype of activations; weights of a dtype have the same one.
      stack: "griffin_jax", or one of the peers, "transformers" or "recurrentgemma".
      shape: The model's shape; None for a folder, which brings its own.
    """

    model: str
    weights: str
    dtype: str
    stack: str = OURS
    shape: GriffinConfig | None = None

    @classmethod
    def parse(cls, text: str, shapes: Shapes | None = None) -> "Subject":
        """Parses MODEL:WEIGHTS[:DTYPE][@STACK], such as "recurrentgemma-9b:nf4@transformers".

        Args:
          text: Without WEIGHTS, they are bfloat16; without DTYPE, it is that of the weights, and
            bfloat16 for packed ones; without STACK, it is griffin_jax.
          shapes: Shapes by name beside the presets: fields of a `GriffinConfig` that differ from
            those of the preset named under "preset".

        Raises:
          ValueError: the text is none of these.
        """
        body, _, stack = text.partition("@")
        model, *rest = body.split(":")
        weights = rest[0] if rest else "bfloat16"
        dtype = rest[1] if len(rest) > 1 else (weights if weights in DTYPES else "bfloat16")
        stack = stack or OURS
        if len(rest) > 2 or weights not in (*DTYPES, *PACKINGS) or dtype not in DTYPES:
            raise ValueError(
                f"model {text!r} must be MODEL:WEIGHTS or MODEL:WEIGHTS:DTYPE, with weights one of "
                f"{', '.join((*DTYPES, *PACKINGS))} and dtype one of {', '.join(DTYPES)}"
            )
        if stack not in STACKS:
            raise ValueError(f"model {text!r}: no stack {stack!r}; there are {', '.join(STACKS)}")
        shape = None
        if shapes and model in shapes:
            changes = dict(shapes[model])
            shape = preset(changes.pop("preset")).replace(**changes)
        elif model in PRESETS:
            shape = preset(model)
        return cls(model, weights, dtype, stack, shape)

    def __str__(self) -> str:
        dtype = "" if self.dtype == self.weights else f":{self.dtype}"
        return f"{self.model}:{self.weights}{dtype}@{self.stack}"

    def to_dict(self) -> dict[str, Any]:
        """Returns what a report says about it, as plain values for JSON."""
        values = {"stack": self.stack, "model": self.model, "weights": self.weights}
        return values | {"dtype": self.dtype, "random_weights": self.shape is not None}

    @property
    def quantization(self) -> QuantizationConfig | None:
        """Settings of packed linear weights; None where they are not packed."""
        return PACKINGS.get(self.weights)

    @property
    def config(self) -> GriffinConfig:
        """The model's shape; a folder's is read from it."""
        return self.shape or checkpoints.open_checkpoint(self.model).config

    def weight_bytes(self) -> int:
        """Returns the bytes of all weights, counted from the shapes."""
        return memory.tree_bytes(abstract_weights(self.config, self.dtype, self.quantization))

    def check_size(self, parts: int = 1) -> None:
        """Raises OutOfMemory where a device does not hold its part of the weights, one of `parts`."""
        needed, limit = self.weight_bytes() / parts, memory.limit_bytes() or available_memory()
        if limit is not None and needed > limit:
            device = jax.devices()[0].device_kind
            raise memory.OutOfMemory(
                f"its weights are {needed / 1e9:.2f} GB, and {device} has {limit / 1e9:.2f} GB for "
                "them; take 4-bit weights, a smaller model or a larger device"
            )

    def load(
        self,
        seed: int = 0,
        stack_layers: bool | None = None,
        mesh: jax.sharding.Mesh | None = None,
    ) -> tuple[LanguageModel, dict[str, Any]]:
        """Returns the model on the device, and what a report says about it.

        Args:
          seed: The seed of random weights.
          stack_layers: As for `griffin_jax.load`.
          mesh: As for `griffin_jax.load`. Random weights are drawn on one device first.

        Raises:
          OutOfMemory: the device does not hold the weights.
          MeshError: the mesh does not divide the model.
          ValueError: the model is neither a preset nor a folder.
        """
        begin = time.perf_counter()
        if mesh is not None and self.shape is not None:
            check_config(self.shape, mesh)
        self.check_size(parts=1 if mesh is None or self.shape else mesh.shape["model"])
        with compilation() as compiled, memory.meeting_limits():
            if self.shape is not None:
                params = random_params(self.shape, self.dtype, self.quantization, seed)
                params = prepare_params(
                    self.shape, params, mesh=mesh, stack_layers=stack_layers, consume=True
                )
                lm = LanguageModel(self.shape, params, dtype=jnp.dtype(self.dtype))
            else:
                lm = griffin_jax.load(
                    self.model,
                    dtype=self.dtype,
                    quantization=self.quantization,
                    stack_layers=stack_layers,
                    mesh=mesh,
                )
                if lm.quantization is not None and self.quantization is None:
                    lm = griffin_jax.dequantize(lm)
                lm = dataclasses.replace(lm, tokenizer=None)  # no token may end a measured text
            jax.block_until_ready(lm.params)
        return lm, self.to_dict() | {
            "weight_bytes": memory.tree_bytes(lm.params),
            "stacked_layers": is_stacked(lm.params),
            "parameters": count_parameters(lm.config),
            "devices": 1 if mesh is None else mesh.size,
            "mesh": {} if mesh is None else {k: n for k, n in mesh.shape.items() if n > 1},
            "make_seconds": time.perf_counter() - begin,
            "make_compile": compiled.to_dict(),
        }


def count_parameters(config: GriffinConfig) -> int:
    """Returns how many numbers a model has learned."""
    leaves = jax.tree.leaves(abstract_weights(config, "bfloat16"))
    return sum(math.prod(leaf.shape) for leaf in leaves)
