"""Hugging Face folders: config.json and safetensors, as transformers reads and writes them.

Linear weights may be packed, as bitsandbytes stores them (`quantization.formats`).
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from griffin_jax.checkpoints.files import listed, read_json, write_json
from griffin_jax.checkpoints.huggingface_config import (
    CONFIG_FILE,
    GEMMA,
    RECURRENT_GEMMA,
    config_from_json,
    config_to_json,
    model_type,
)
from griffin_jax.checkpoints.placement import Shardings
from griffin_jax.checkpoints.shards import MAX_SHARD_SIZE, ShardWriter, TensorReader
from griffin_jax.checkpoints.tree import check_paths, check_shape, flat_abstract_params
from griffin_jax.config import GriffinConfig
from griffin_jax.errors import CheckpointError
from griffin_jax.models import kind_at
from griffin_jax.quantization import FORMATS, QuantizationConfig
from griffin_jax.quantization.formats import format_at, read_packed
from griffin_jax.tokenizer_files import GENERATION_FILE
from griffin_jax.weight import is_weight

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_HEAD_MODULE = "lm_head"
_CONV = "conv_1d/weight"
_GEMMA_IDS = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
_COMMON_RENAMES = (
    (r"^embedder/embedding$", _EMBEDDING),
    (r"^(blocks_|final_norm)", r"model.\1"),
    (r"blocks_(\d+)/", r"layers.\1."),
    (r"norm/scale$", r"norm.weight"),
)
_RENAMES = {
    RECURRENT_GEMMA: (
        *_COMMON_RENAMES,
        (r"(recurrent|attention)_block/", r"temporal_block."),
        (r"rg_lru/a_param$", r"rg_lru.recurrent_param"),
        (r"rg_lru/input_gate/", r"rg_lru.input_gate_"),
        (r"rg_lru/a_gate/", r"rg_lru.recurrent_gate_"),
        (r"/", r"."),
    ),
    GEMMA: (
        *_COMMON_RENAMES,
        (r"final_norm", r"norm"),
        (r"temporal_pre_norm", r"input_layernorm"),
        (r"channel_pre_norm", r"post_attention_layernorm"),
        (r"attention_block/", r"self_attn."),
        (r"mlp_block/", r"mlp."),
        (r"/", r"."),
    ),
}
ARCHITECTURES = tuple(_RENAMES)


def is_linear(path: str) -> bool:
    """Returns whether a leaf is the weight of a linear layer, which bitsandbytes would pack.

    The embedding, the diagonal blocks of the gates and the convolution are none.
    """
    return kind_at(path).packs


def tensor_name(path: str, architecture: str) -> str:
    """Returns the tensor of a leaf: model.layers.0.mlp_block.up_proj.bias is
    blocks_0/mlp_block/up_proj/bias.

    `architecture` is `model_type` of the model's config.
    """
    for pattern, replacement in _RENAMES[architecture]:
        path = re.sub(pattern, replacement, path)
    return path


def open_folder(folder: Path) -> "HuggingFaceSource | None":
    """Opens a folder of this format; returns None for one of another."""
    return HuggingFaceSource(folder) if (folder / CONFIG_FILE).is_file() else None


class HuggingFaceSource:
    """A folder of Hugging Face's, opened: names and shapes are checked, no weight is read.

    Attributes:
      config: The model's shape.
      quantization: `quantization_config` of config.json, or None.
      nbytes: The bytes of all weights as stored.
      folder: The checkpoint's folder.

    Raises:
      CheckpointError: what the folder holds is no RecurrentGemma or Gemma, damaged or incomplete.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        values = read_json(folder / CONFIG_FILE)
        try:
            self.config = config_from_json(values)
        except CheckpointError as error:
            raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error
        self._architecture = model_type(self.config)
        self.quantization: dict[str, Any] | None = values.get("quantization_config")
        self._reader = TensorReader(folder)
        if self.config.num_layers > len(self._reader.names):  # whose names would take long to list
            raise CheckpointError(
                f"{folder / CONFIG_FILE}: num_hidden_layers is {self.config.num_layers:,}, but the "
                f"folder has {len(self._reader.names)} tensors"
            )
        self._parts: dict[str, list[str]] = {}
        settings = self._settings(folder)
        self._check_names()
        self._check_shapes(settings)
        if settings is not None:
            self._check_packed(settings)

    @property
    def nbytes(self) -> int:
        return self._reader.nbytes

    def stored_name(self, path: str) -> str:
        """Returns how the checkpoint calls a leaf."""
        return tensor_name(path, self._architecture)

    def leaves(self, shardings: Shardings | None = None) -> Iterator[tuple[str, Any]]:
        """Yields every leaf's path and value, in the model's order, mapped from disk in its turn.

        Of an array that is mapped only what is used is read, so `shardings` change nothing.

        Raises:
          CheckpointError: the parts of a packed weight are incomplete or contradict each other.
        """
        for path, struct in flat_abstract_params(self.config).items():
            name = self.stored_name(path)
            if name in self._parts:
                leaf = read_packed(
                    {part: self._reader.read(part) for part in self._parts[name]}, name
                )
                check_shape(f"{self._reader.folder}: tensor {name}", leaf.shape, struct.shape)
            else:
                array = self._reader.read(name)
                leaf = array[:, 0].T if path.endswith(_CONV) else array
            yield path, leaf

    def _check_names(self) -> None:
        wanted = {self.stored_name(path) for path in flat_abstract_params(self.config)}
        missing = sorted(name for name in wanted if name not in self._reader)
        if missing:
            raise CheckpointError(f"{self._reader.folder}: {listed(missing)} missing")
        unexpected = []
        for name in sorted(set(self._reader.names) - wanted):
            _, whole = format_at(name) or (None, None)
            if whole in wanted:
                self._parts.setdefault(whole, [whole]).append(name)
            elif name == _HEAD and self.config.tie_embeddings:
                self._check_tied_head()
            else:
                unexpected.append(name)
        if unexpected:
            raise CheckpointError(f"{self._reader.folder}: {listed(unexpected)} unexpected")

    def _check_tied_head(self) -> None:
        if not np.array_equal(self._reader.read(_HEAD), self._reader.read(_EMBEDDING)):
            raise CheckpointError(
                f"{self._reader.folder}: {_HEAD} differs from {_EMBEDDING}, but "
                f"tie_word_embeddings in {CONFIG_FILE} says they are one"
            )

    def _check_shapes(self, settings: QuantizationConfig | None) -> None:
        for path, struct in flat_abstract_params(self.config).items():
            name, expected = self.stored_name(path), struct.shape
            if name in self._parts:
                continue
            if path.endswith(_CONV):
                expected = (expected[1], 1, expected[0])
            if self._reader[name].dtype.kind in "iu":
                mark = FORMATS[settings.quant_type].MARK if settings else "scales"
                raise CheckpointError(
                    f"{self._reader.folder}: tensor {name} holds packed bytes but has no {mark}; the "
                    "folder is half-quantized"
                )
            check_shape(f"{self._reader.folder}: tensor {name}", self._reader[name].shape, expected)

    def _settings(self, folder: Path) -> QuantizationConfig | None:
        if self.quantization is None:
            return None
        try:
            return QuantizationConfig.from_dict(self.quantization)
        except ValueError as error:
            raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error

    def _check_packed(self, settings: QuantizationConfig) -> None:
        names = [self.stored_name(p) for p in flat_abstract_params(self.config) if is_linear(p)]
        whole = [
            name
            for name in names
            if name not in self._parts and not settings.skips(name.removesuffix(".weight"))
        ]
        if whole:
            raise CheckpointError(
                f"{self._reader.folder}: {listed(whole)} not quantized, but quantization_config in "
                f"{CONFIG_FILE} calls for it; the folder is half-quantized"
            )


def write_leaves(
    folder: Path,
    config: GriffinConfig,
    leaves: Iterable[tuple[str, Any]],
    *,
    quantization: dict[str, Any] | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Writes a model into a folder that exists, a leaf at a time; config.json comes last.

    Args:
      folder: Where to write.
      config: The model's shape.
      leaves: Paths and host arrays, or packed weights of host arrays, of the whole tree.
      quantization: `quantization_config` of config.json, for packed weights. None makes one that
        says how they are packed.
      max_shard_size: Bytes of tensors in one file.

    Raises:
      CheckpointError: the format cannot express the config, or the leaves are not its own.
    """
    values = config_to_json(config)
    architecture = model_type(config)
    storage = (quantization or {}).get("bnb_4bit_quant_storage") or "uint8"
    kinds = {}
    with ShardWriter(folder, max_shard_size) as writer:
        for path, leaf in leaves:
            name, kinds[path] = tensor_name(path, architecture), packing_of(leaf)
            if kinds[path] is not None:
                form = FORMATS[leaf.quant_type]
                for part, array in form.to_arrays(leaf, name, storage).items():
                    writer.add(part, array)
            else:
                writer.add(name, leaf.T[:, None] if path.endswith(_CONV) else leaf)
                if name == _EMBEDDING:
                    values["dtype"] = leaf.dtype.name
        check_paths(config, kinds.keys())
        writer.finish()
    if any(kinds.values()):
        values["quantization_config"] = describe_packing(kinds, architecture, quantization)
    if not (folder / GENERATION_FILE).exists():  # as there is with a tokenizer
        write_json(folder / GENERATION_FILE, _GEMMA_IDS)
    write_json(folder / CONFIG_FILE, values)


def packing_of(leaf: Any) -> QuantizationConfig | None:
    """Returns settings that give such a packed weight; None of an array."""
    return FORMATS[leaf.quant_type].settings_of(leaf) if is_weight(leaf) else None


def describe_packing(
    kinds: dict[str, QuantizationConfig | None],
    architecture: str,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the `quantization_config` of a model, from the `packing_of` of its leaves by path.

    Args:
      kinds: The kinds of all leaves.
      architecture: `model_type` of the model's config.
      settings: What the weights were packed under, which stays but for layers that are not packed:
        a list of these replaces transformers' own, which is the head alone, so all are named.

    Raises:
      CheckpointError: some weights are in 4 bits and others in 8, which settings cannot say.
    """
    packings = list(filter(None, kinds.values()))
    if settings is None:
        settings = packings[0].to_dict()
    for packing in packings:
        if packing.load_in_8bit != bool(settings.get("load_in_8bit")):
            raise CheckpointError(
                f"weights are packed as {packing.name}, but quantization_config says "
                f"load_in_{8 if settings.get('load_in_8bit') else 4}bit: one file of settings tells of "
                "one way"
            )
    names = [tensor_name(p, architecture) for p, kind in kinds.items() if is_linear(p) and not kind]
    whole = [name.removesuffix(".weight") for name in names]
    if not any(path.startswith(f"{_HEAD_MODULE}/") for path in kinds):  # it is the embedding
        whole.append(_HEAD_MODULE)
    skips = QuantizationConfig.from_dict(settings).skips
    unnamed = [module for module in whole if not skips(module)]
    if not unnamed:
        return settings
    named = settings.get("llm_int8_skip_modules")
    named = [_HEAD_MODULE] if named is None else named
    return settings | {"llm_int8_skip_modules": [*named, *unnamed]}
