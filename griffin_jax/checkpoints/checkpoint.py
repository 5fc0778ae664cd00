"""Loading a checkpoint of any format, and saving one."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from jax.typing import DTypeLike

from griffin_jax.checkpoints import deepmind, hub, huggingface, huggingface_config, orbax, peft
from griffin_jax.checkpoints.files import listed, staged_folder, write_json
from griffin_jax.checkpoints.packing import pack_leaf
from griffin_jax.checkpoints.placement import (
    Placement,
    Shardings,
    all_finite,
    leaf_nbytes,
    progress_bar,
)
from griffin_jax.checkpoints.source import Source
from griffin_jax.config import GriffinConfig
from griffin_jax.errors import CheckpointError
from griffin_jax.models import leaf_shardings
from griffin_jax.models.parameters import model_order
from griffin_jax.paths import AnyPath, resolve
from griffin_jax.quantization import QuantizationConfig
from griffin_jax.sharding import is_first, to_host
from griffin_jax.tokenizer import Tokenizer
from griffin_jax.tokenizer_files import GENERATION_FILE

BUNDLED = "griffin-tiny"
_BUNDLED_FOLDER = Path(__file__).parents[1] / "assets" / BUNDLED

_RUN_FILE = "run.json"  # what training leaves in its folder


@dataclasses.dataclass(frozen=True)
class Format:
    """How checkpoints of a format are read and written.

    Attributes:
      open_folder: Opens a folder of the format, and returns None for one of another.
      write_leaves: Writes a model into a folder that exists, its leaves one at a time, in the first
        process alone; see `huggingface.write_leaves`. None for a format that is only read.
      write_tree: Writes a model from its whole tree, in all processes together; see
        `orbax.write_tree`. None for a format that is written leaf by leaf.
    """

    open_folder: Callable[[Path], Source | None]
    write_leaves: Callable[..., None] | None = None
    write_tree: Callable[..., None] | None = None


# A row for each format. The first that opens a folder has it.
FORMATS = {
    "orbax": Format(orbax.open_folder, orbax.write_leaves, orbax.write_tree),
    "huggingface": Format(huggingface.open_folder, huggingface.write_leaves),
    "deepmind": Format(deepmind.open_folder),
}
WRITTEN = tuple(name for name, row in FORMATS.items() if row.write_leaves is not None)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
      config: The model's shape.
      params: The parameter tree, on devices.
      quantization: The quantization's settings as Hugging Face's `quantization_config` has them,
        or None.
      folder: Where it came from; a tokenizer, if there is one, lies in it.
    """

    config: GriffinConfig
    params: dict
    quantization: dict[str, Any] | None
    folder: Path


def find_folder(path: AnyPath) -> Path:
    """Returns the folder of a checkpoint: `path` itself, or where a model of that name is kept.

    A name is "griffin-tiny", the model that comes with the package, or one on the Hub.

    Raises:
      FileNotFoundError: there is none.
      CheckpointError: the Hub does not give the model; see `hub.fetch`.
      ValueError: it is no path.
    """
    if path == BUNDLED or path == Path(BUNDLED):
        return _BUNDLED_FOLDER
    folder = resolve(path, "checkpoint")
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder} is a file: give the checkpoint's folder")
    if hub.is_hub_name(name := os.fsdecode(path)):
        return hub.fetch(name)
    raise FileNotFoundError(
        f"no folder {folder}: give a checkpoint's folder, or a Hub name such as "
        "google/recurrentgemma-2b-it"
    )


def open_checkpoint(path: str | Path) -> Source:
    """Recognizes the format of a folder and opens it, without reading weights.

    Args:
      path: A folder of Hugging Face's, of ours or with a published DeepMind tree, or one around
        the latter (as Kaggle's archives have it, with the tokenizer); or a name, see
        `find_folder`.

    Raises:
      FileNotFoundError: there is no such folder.
      CheckpointError: the folder has no weights, or damaged or unfitting ones.
    """
    folder = find_folder(path)
    for row in FORMATS.values():
        if (source := row.open_folder(folder)) is not None:
            return source
    raise CheckpointError(f"{folder} {_other_folder(folder)}")


def _other_folder(folder: Path) -> str:
    """Returns what a folder is that is no checkpoint, and what to give in its place."""
    if (folder / peft.CONFIG_FILE).is_file():
        base = peft.base_of(folder)
        return (
            f"is a LoRA adapter{f' of {base}' if base else ''}, no model: give that one, with this "
            "folder as `load(adapter=)` or --config.adapter, or the "
            "model/ that `python -m experiments.train --merge` writes beside the adapter"
        )
    if (folder / _RUN_FILE).is_file():
        if (folder / "model").is_dir():
            return f"is a training run: its model is {folder / 'model'}"
        if (folder / "adapter").is_dir():
            return (
                f"is a training run of a LoRA adapter, {folder / 'adapter'}: the same command with "
                "--merge writes model/, the base with the adapter in it"
            )
        return "is a training run that has not ended: the same command goes on and writes model/"
    if (folder.parent / _RUN_FILE).is_file():
        return f"belongs to a training run: give the run's model, {folder.parent / 'model'}"
    return (
        f"is no checkpoint: expected {huggingface.CONFIG_FILE} with safetensors (Hugging Face), "
        f"{orbax.CONFIG_FILE} (griffin_jax), or one Orbax tree (DeepMind)"
    )


def load_checkpoint(
    path: str | Path | Source,
    *,
    dtype: DTypeLike | None = None,
    preserve_dtype: DTypeLike | None = None,
    quantization: QuantizationConfig | None = None,
    shardings: Shardings | None = None,
    mesh: jax.sharding.Mesh | None = None,
    allow_nan: bool = False,
    progress: bool = True,
) -> Checkpoint:
    """Loads a model, leaf by leaf straight to the wanted dtype and devices.

    Args:
      path: A folder or a name, or what `open_checkpoint` has made of one.
      dtype: The dtype of every floating-point array outside of packed weights; None keeps the stored one.
      preserve_dtype: Arrays that are stored in this dtype are not cast, whatever `dtype` says.
      quantization: Pack linear weights on the way, see `pack_leaf`; None leaves all as stored.
      shardings: Gives the shardings of a leaf from its path in the tree and the leaf; see
        `Placement`. None puts everything on the default device, or on the mesh.
      mesh: Puts everything where its axes say that it lies on this mesh.
      allow_nan: Go on where a weight holds NaN or infinity.
      progress: Show a bar on standard error if there is much to read.

    Raises:
      FileNotFoundError: there is no such folder.
      CheckpointError: the folder has no weights, or damaged or unfitting ones, or is quantized
        already, otherwise than asked for.
    """
    source = open_checkpoint(path) if isinstance(path, str | os.PathLike) else path
    if mesh is not None:
        shardings = functools.partial(leaf_shardings, source.config, mesh)
    placement = Placement(dtype, shardings, preserve_dtype)
    params, finite = {}, {}
    with progress_bar("loading", source.nbytes, progress) as bar:
        # What is packed on the way is packed whole.
        where = shardings if quantization is None else None
        for leaf_path, leaf in source.leaves(where):
            nbytes = leaf_nbytes(leaf)
            if quantization is not None:
                leaf = _pack(source, leaf_path, leaf, quantization)
            params[leaf_path] = placement.place(leaf_path, leaf)
            if not allow_nan:
                finite[leaf_path] = [all_finite(x) for x in jax.tree.leaves(params[leaf_path])]
            bar.update(nbytes)
    bad = [source.stored_name(path) for path, checks in finite.items() if not all(checks)]
    if bad:
        raise CheckpointError(
            f"{source.folder}: {listed(bad)} not finite (NaN or infinity): a damaged checkpoint, or too "
            "narrow a dtype; allow_nan=True loads it all the same"
        )
    params = flax.traverse_util.unflatten_dict(params, sep="/")
    settings = source.quantization if quantization is None else quantization.to_dict()
    return Checkpoint(source.config, params, settings, source.folder)


def _pack(source, path, leaf, settings):
    packed = pack_leaf(
        path,
        leaf,
        settings,
        name=source.stored_name(path),
        architecture=huggingface_config.model_type(source.config),
    )
    return leaf if packed is leaf else jax.tree.map(np.asarray, packed)


def save_checkpoint(
    folder: str | Path,
    config: GriffinConfig,
    params: dict,
    *,
    format: str = "orbax",
    tokenizer: Tokenizer | None = None,
    quantization: dict[str, Any] | None = None,
    max_shard_size: int = huggingface.MAX_SHARD_SIZE,
    progress: bool = True,
    replace: bool = False,
) -> None:
    """Saves a model into a new folder, which appears when it is complete.

    Args:
      folder: What to make; must not exist, or be empty.
      config: The model's shape.
      params: The parameter tree.
      format: "orbax" (ours; any config) or "huggingface" (transformers reads it; the variants of
        RecurrentGemma and Gemma only).
      tokenizer: Goes along with the model.
      quantization: Settings of packed weights, as in Hugging Face's `quantization_config`.
      max_shard_size: Bytes of tensors in one safetensors file.
      progress: Show a bar on standard error if there is much to write.
      replace: Take the place of a folder that is there, once the new one is complete.

    Raises:
      CheckpointError: the folder holds something, or the format cannot express the model.
      OutputError: (an OSError) the folder cannot be written, or the disk is full.
      InUseError: (an OSError) another process writes it.
    """
    row = _row_of(format)
    if row.write_tree is None:
        save_leaves(
            folder,
            config,
            host_leaves(params, progress),
            format=format,
            tokenizer=tokenizer,
            quantization=quantization,
            max_shard_size=max_shard_size,
            replace=replace,
        )
        return
    with staged_folder(folder, replace) as partial:
        if tokenizer is not None and is_first():
            _save_small_files(partial, tokenizer)
        row.write_tree(partial, config, params, quantization)


def save_leaves(
    folder: str | Path,
    config: GriffinConfig,
    leaves: Iterable[tuple[str, Any]],
    *,
    format: str = "huggingface",
    tokenizer: Tokenizer | None = None,
    quantization: dict[str, Any] | None = None,
    max_shard_size: int = huggingface.MAX_SHARD_SIZE,
    replace: bool = False,
) -> None:
    """Does what `save_checkpoint` does, with leaves that come one at a time.

    With a source's `leaves()`, changed on the way or not, "huggingface" needs the memory of a few
    tensors whatever the model's size. For "orbax" the leaves wait in files, mapped into memory that
    the system can take back, and need the model's size on disk once more while it runs.

    Args:
      folder: What to make; must not exist, or be empty.
      config: The model's shape.
      leaves: Path and value of every leaf; values are host arrays, or packed weights of such.
      format: As for `save_checkpoint`.
      tokenizer: Goes along with the model.
      quantization: Settings of packed weights; None makes them from what is packed.
      max_shard_size: Bytes of tensors in one safetensors file.
      replace: As for `save_checkpoint`.

    Raises:
      CheckpointError: the folder holds something, the format is unknown or cannot express the
        model, or `leaves` lack one.
    """
    row = _row_of(format)
    with staged_folder(folder, replace) as partial:
        if not is_first():
            for _ in leaves:  # which may take all processes to gather
                pass
            return
        if tokenizer is not None:
            _save_small_files(partial, tokenizer)
        row.write_leaves(
            partial, config, leaves, quantization=quantization, max_shard_size=max_shard_size
        )


def _row_of(format: str) -> Format:
    if format not in WRITTEN:
        raise CheckpointError(
            f"format {format!r} is unknown: use {' or '.join(map(repr, WRITTEN))}"
        )
    return FORMATS[format]


def _save_small_files(folder: Path, tokenizer: Tokenizer) -> None:
    """What lay beside the weights goes along as it is; where texts end is written down anyhow."""
    tokenizer.save(folder)
    if not (folder / GENERATION_FILE).exists():
        special_ids = {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": list(tokenizer.stop_ids),
            "pad_token_id": tokenizer.pad_id,
        }
        write_json(folder / GENERATION_FILE, special_ids)


def host_leaves(params: dict, progress: bool) -> Iterator[tuple[str, Any]]:
    """Yields paths and host copies of a tree's leaves, one at a time, in the model's order."""
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    with progress_bar("saving", leaf_nbytes(params), progress) as bar:
        for path in sorted(leaves, key=model_order):
            yield path, to_host(leaves[path])
            bar.update(leaf_nbytes(leaves[path]))
