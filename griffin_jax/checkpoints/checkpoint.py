"""Loading a checkpoint of any format, and saving one."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from griffin_jax.checkpoints import huggingface, orbax
from griffin_jax.checkpoints.errors import CheckpointError
from griffin_jax.checkpoints.files import listed, staged_folder, write_json
from griffin_jax.checkpoints.placement import (
    Placement,
    Shardings,
    all_finite,
    leaf_nbytes,
    progress_bar,
)
from griffin_jax.checkpoints.tree import model_order
from griffin_jax.config import GriffinConfig

_TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_GENERATION_FILE = "generation_config.json"
_GENERATION = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}

Source = huggingface.HuggingFaceSource | orbax.OrbaxSource


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
      config: The model's shape.
      params: The parameter tree, on devices.
      quantization: The quantisation's settings as Hugging Face's `quantization_config` has them,
        or None.
      folder: Where it came from; a tokenizer, if there is one, lies in it.
    """

    config: GriffinConfig
    params: dict
    quantization: dict[str, Any] | None
    folder: Path


def open_checkpoint(path: str | Path) -> Source:
    """Recognises the format of a folder and opens it, without reading weights.

    The source's `leaves()` streams (path, value) pairs, which `write_huggingface` takes: a model
    of any size is converted in the memory of a few tensors.

    Raises:
      FileNotFoundError: there is no such folder.
      CheckpointError: the folder has no weights, or damaged or unfitting ones.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: expected a checkpoint's folder")
    if (folder / orbax.CONFIG_FILE).is_file():
        return orbax.OrbaxSource(folder)
    if (folder / huggingface.CONFIG_FILE).is_file():
        return huggingface.HuggingFaceSource(folder)
    raise CheckpointError(
        f"{folder} is no checkpoint: it has neither {huggingface.CONFIG_FILE} (Hugging Face) nor "
        f"{orbax.CONFIG_FILE} (griffin_jax)"
    )


def load_checkpoint(
    path: str | Path,
    *,
    dtype: DTypeLike | None = None,
    shardings: Shardings | None = None,
    allow_nan: bool = False,
    progress: bool = True,
) -> Checkpoint:
    """Loads a model, leaf by leaf straight to the wanted dtype and devices.

    Args:
      path: A folder of Hugging Face's or of ours.
      dtype: Of every floating-point array outside of packed weights; None keeps the stored one.
      shardings: Gives the sharding of an array from its path in the tree and its shape; see
        `Placement`. None puts everything on the default device.
      allow_nan: Go on where a weight holds NaN or infinity.
      progress: Show a bar on standard error if there is much to read.

    Raises:
      FileNotFoundError: there is no such folder.
      CheckpointError: the folder has no weights, or damaged or unfitting ones.
    """
    source = open_checkpoint(path)
    placement = Placement(dtype, shardings)
    params, finite = {}, {}
    with progress_bar("loading", source.nbytes, progress) as bar:
        for leaf_path, leaf in source.leaves():
            params[leaf_path] = placement.place(leaf_path, leaf)
            if not allow_nan:
                finite[leaf_path] = [all_finite(x) for x in jax.tree.leaves(params[leaf_path])]
            bar.update(leaf_nbytes(leaf))
    bad = [source.stored_name(path) for path, checks in finite.items() if not all(checks)]
    if bad:
        raise CheckpointError(
            f"{path}: {listed(bad)} not finite (NaN or infinity): a damaged checkpoint, or too "
            "narrow a dtype; allow_nan=True loads it all the same"
        )
    params = flax.traverse_util.unflatten_dict(params, sep="/")
    return Checkpoint(source.config, params, source.quantization, Path(path))


def save_checkpoint(
    folder: str | Path,
    config: GriffinConfig,
    params: dict,
    *,
    format: Literal["orbax", "huggingface"] = "orbax",
    tokenizer: str | Path | None = None,
    quantization: dict[str, Any] | None = None,
    max_shard_size: int = huggingface.MAX_SHARD_SIZE,
    progress: bool = True,
) -> None:
    """Saves a model into a new folder, which appears when it is complete.

    Args:
      folder: What to make; must not exist, or be empty.
      config: The model's shape.
      params: The parameter tree.
      format: "orbax" (ours; any config) or "huggingface" (transformers reads it; RecurrentGemma's
        variant only).
      tokenizer: A folder whose tokenizer files are copied along.
      quantization: Settings of packed weights, as in Hugging Face's `quantization_config`.
      max_shard_size: Bytes of tensors in one safetensors file.
      progress: Show a bar on standard error if there is much to write.

    Raises:
      CheckpointError: the folder holds something, or the format cannot express the model.
    """
    with staged_folder(folder) as partial:
        if tokenizer is not None:
            copy_tokenizer(Path(tokenizer), partial)
        if format == "orbax":
            orbax.write_orbax(partial, config, params, quantization)
        elif format == "huggingface":
            huggingface.write_huggingface(
                partial,
                config,
                host_leaves(params, progress),
                dtype=params["embedder"]["embedding"].dtype.name,
                quantization=quantization,
                max_shard_size=max_shard_size,
            )
            if not (partial / _GENERATION_FILE).exists():
                write_json(partial / _GENERATION_FILE, _GENERATION)
        else:
            raise CheckpointError(f"format {format!r} is unknown: use 'orbax' or 'huggingface'")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the tokenizer and generation settings that `source` has."""
    for name in (*_TOKENIZER_FILES, _GENERATION_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def host_leaves(params: dict, progress: bool) -> Iterator[tuple[str, Any]]:
    """Paths and host copies of a tree's leaves, one at a time, in the model's order."""
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    with progress_bar("saving", leaf_nbytes(params), progress) as bar:
        for path in sorted(leaves, key=model_order):
            # A device array keeps its host copy for as long as it lives, so a short-lived copy of
            # it is read.
            yield path, jax.tree.map(lambda x: np.asarray(jnp.copy(x)), leaves[path])
            bar.update(leaf_nbytes(leaves[path]))
