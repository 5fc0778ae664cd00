"""Hugging Face folders: config.json and safetensors, as transformers reads and writes them."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from griffin_jax.checkpoints.errors import CheckpointError
from griffin_jax.checkpoints.files import listed, read_json, write_json
from griffin_jax.checkpoints.huggingface_config import (
    CONFIG_FILE,
    config_from_json,
    config_to_json,
)
from griffin_jax.checkpoints.shards import MAX_SHARD_SIZE, ShardWriter, TensorReader
from griffin_jax.checkpoints.tree import check_shape, flat_abstract_params, model_order
from griffin_jax.config import GriffinConfig

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_RENAMES = (
    (r"^embedder/embedding$", _EMBEDDING),
    (r"^(blocks_|final_norm)", r"model.\1"),
    (r"blocks_(\d+)/", r"layers.\1."),
    (r"(recurrent|attention)_block/", r"temporal_block."),
    (r"norm/scale$", r"norm.weight"),
    (r"rg_lru/a_param$", r"rg_lru.recurrent_param"),
    (r"rg_lru/input_gate/", r"rg_lru.input_gate_"),
    (r"rg_lru/a_gate/", r"rg_lru.recurrent_gate_"),
    (r"/", r"."),
)


def tensor_name(path: str) -> str:
    """The tensor of a leaf: blocks_0/mlp_block/up_proj/bias is model.layers.0.mlp_block.up_proj.bias."""
    for pattern, replacement in _RENAMES:
        path = re.sub(pattern, replacement, path)
    return path


class HuggingFaceSource:
    """A folder of Hugging Face's, opened: headers and names are checked, no weight is read.

    Attributes:
      config: The model's shape.
      quantization: `quantization_config` of config.json, or None.
      nbytes: Of all weights as stored.

    Raises:
      CheckpointError: what the folder holds is no RecurrentGemma, damaged or incomplete.
    """

    def __init__(self, folder: Path):
        values = read_json(folder / CONFIG_FILE)
        self.config = config_from_json(values)
        self.quantization: dict[str, Any] | None = values.get("quantization_config")
        self._reader = TensorReader(folder)
        self._shapes = flat_abstract_params(self.config)
        self._check_names()

    @property
    def nbytes(self) -> int:
        return self._reader.nbytes

    def stored_name(self, path: str) -> str:
        """How the checkpoint calls a leaf."""
        return tensor_name(path)

    def leaves(self) -> Iterator[tuple[str, Any]]:
        """Every leaf's path and value, in the model's order, mapped from disk in its turn.

        Raises:
          CheckpointError: a tensor has another shape than the config says.
        """
        for path in sorted(self._shapes, key=model_order):
            yield path, self._leaf(path, self._shapes[path].shape)

    def _leaf(self, path: str, shape: tuple[int, ...]) -> np.ndarray:
        name = tensor_name(path)
        is_conv = path.endswith("conv_1d/weight")
        expected = (shape[1], 1, shape[0]) if is_conv else shape
        check_shape(f"{self._reader.folder}: tensor {name}", self._reader[name].shape, expected)
        array = self._reader.read(name)
        return array[:, 0].T if is_conv else array

    def _check_names(self) -> None:
        wanted = {tensor_name(path) for path in self._shapes}
        missing = sorted(name for name in wanted if name not in self._reader)
        if missing:
            raise CheckpointError(f"{self._reader.folder}: {listed(missing)} missing")
        unexpected = sorted(set(self._reader.names) - wanted)
        if self.config.tie_embeddings and _HEAD in unexpected:
            unexpected.remove(_HEAD)
            if not np.array_equal(self._reader.read(_HEAD), self._reader.read(_EMBEDDING)):
                raise CheckpointError(
                    f"{self._reader.folder}: {_HEAD} differs from {_EMBEDDING}, but "
                    f"tie_word_embeddings in {CONFIG_FILE} says they are one"
                )
        if unexpected:
            raise CheckpointError(f"{self._reader.folder}: {listed(unexpected)} unexpected")


def write_huggingface(
    folder: Path,
    config: GriffinConfig,
    leaves: Iterable[tuple[str, Any]],
    *,
    dtype: str,
    quantization: dict[str, Any] | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Writes a model into a folder that exists, a leaf at a time; config.json comes last.

    Args:
      folder: Where to write.
      config: The model's shape.
      leaves: Paths and host arrays of the whole tree.
      dtype: Of the weights, for config.json ("bfloat16").
      quantization: `quantization_config` of config.json.
      max_shard_size: Bytes of tensors in one file.

    Raises:
      CheckpointError: the format cannot express the config.
    """
    values = config_to_json(config, dtype)
    if quantization is not None:
        values["quantization_config"] = quantization
    writer = ShardWriter(folder, max_shard_size)
    for path, leaf in leaves:
        writer.add(tensor_name(path), leaf.T[:, None] if path.endswith("conv_1d/weight") else leaf)
    writer.finish()
    write_json(folder / CONFIG_FILE, values)
