"""Our own checkpoint: an Orbax tree in `params/`, and `griffin_config.json` beside it.

A packed weight is a dict of its arrays in the tree; its type and block size are in the JSON.
"""

import functools
import importlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from griffin_jax.checkpoints.files import listed, read_json, write_json
from griffin_jax.checkpoints.huggingface import describe_packing, packing_of
from griffin_jax.checkpoints.huggingface_config import model_type
from griffin_jax.checkpoints.placement import Shardings, mapped_from_disk
from griffin_jax.checkpoints.tree import (
    array_paths,
    block_of,
    check_paths,
    check_shape,
    flat_abstract_params,
)
from griffin_jax.config import GriffinConfig
from griffin_jax.errors import CheckpointError
from griffin_jax.quantization.formats import FORMATS, format_of_type
from griffin_jax.weight import is_weight

CONFIG_FILE = "griffin_config.json"
PARAMS_FOLDER = "params"
_FORMAT_VERSION = 1
_MARKS = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")


@functools.cache
def _orbax() -> ModuleType:
    """Orbax, which takes a fifth of the time that the whole package does to import."""
    return importlib.import_module("orbax.checkpoint")


def is_orbax_tree(folder: Path) -> bool:
    """Returns whether Orbax wrote a tree into this folder."""
    return any((folder / mark).is_file() for mark in _MARKS)


class OrbaxTree:
    """The arrays of an Orbax checkpoint, whatever its storage; opening reads its metadata only.

    Attributes:
      arrays: Metadata (shape, dtype) of every array, by the keys that lead to it.

    Raises:
      CheckpointError: Orbax finds no checkpoint in the folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self._checkpointer = _orbax().Checkpointer(_orbax().PyTreeCheckpointHandler())
        try:
            metadata = self._checkpointer.metadata(self.folder).item_metadata.tree
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{folder} is not a complete Orbax checkpoint") from error
        # Trees of other programs hold lists, empty places and what is no array.
        self.arrays: dict[tuple[str, ...], Any] = {
            tuple(jax.tree_util.keystr((key,), simple=True) for key in keys): leaf
            for keys, leaf in jax.tree_util.tree_flatten_with_path(metadata)[0]
            if hasattr(leaf, "shape") and hasattr(leaf, "dtype")
        }

    @property
    def nbytes(self) -> int:
        """The size of all arrays in bytes."""
        return sum(
            int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize
            for array in self.arrays.values()
        )

    def read(
        self, keys: Iterable[tuple[str, ...]], shardings: Mapping | None = None
    ) -> dict[tuple[str, ...], np.ndarray | jax.Array]:
        """Reads some of the arrays, to the host or straight to devices.

        Args:
          keys: The names of the arrays.
          shardings: Where each goes, by its key; a process reads no more than its part.

        Raises:
          CheckpointError: their files are damaged.
        """

        def how(key):
            if shardings is None:
                return _orbax().RestoreArgs(restore_type=np.ndarray)
            shape = tuple(self.arrays[key].shape)
            return _orbax().ArrayRestoreArgs(sharding=shardings[key], global_shape=shape)

        wanted = {key: how(key) for key in keys}
        restore_args = flax.traverse_util.unflatten_dict(wanted)
        args = _orbax().args.PyTreeRestore(
            item=restore_args, restore_args=restore_args, partial_restore=True
        )
        try:
            restored = self._checkpointer.restore(self.folder, args=args)
        except (OSError, ValueError, KeyError) as error:
            names = listed(["/".join(key) for key in wanted])
            raise CheckpointError(
                f"{self.folder}: {names} unreadable; a file is damaged"
            ) from error
        flat: Any = flax.traverse_util.flatten_dict(restored)
        return flat


def open_folder(folder: Path) -> "OrbaxSource | None":
    """Opens a folder of this format; returns None for one of another."""
    return OrbaxSource(folder) if (folder / CONFIG_FILE).is_file() else None


class OrbaxSource:
    """A checkpoint of ours, opened: names and shapes are checked, no weight is read.

    Attributes:
      config: The model's shape.
      quantization: The quantization's settings, or None.
      nbytes: The bytes of all weights as stored.
      folder: The checkpoint's folder.

    Raises:
      CheckpointError: the folder is damaged or does not fit its config.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        values = read_json(folder / CONFIG_FILE)
        if values.get("format_version") != _FORMAT_VERSION:
            raise CheckpointError(
                f"{folder / CONFIG_FILE}: format_version {values.get('format_version')!r} is not "
                f"{_FORMAT_VERSION}"
            )
        try:
            self.config = GriffinConfig.from_dict(values["config"])
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error
        self.quantization: dict[str, Any] | None = values.get("quantization")
        self._tree = OrbaxTree(folder / PARAMS_FOLDER)
        self._leaves = dict(flat_abstract_params(self.config))
        try:
            for path, packing in values.get("packed", {}).items():
                form = format_of_type(packing["quant_type"])
                self._leaves[path] = form.from_metadata(self._leaves[path].shape, packing)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / CONFIG_FILE}: packed: {error!r}") from error
        self._check_arrays()

    @property
    def nbytes(self) -> int:
        return self._tree.nbytes

    def stored_name(self, path: str) -> str:
        """Returns how the checkpoint calls a leaf."""
        return path

    def leaves(self, shardings: Shardings | None = None) -> Iterator[tuple[str, Any]]:
        """Yields every leaf's path and value, in the model's order; the host holds a block at a
        time.

        With shardings the values are arrays that lie so, of which each process reads its part.
        """
        for _, block in itertools.groupby(self._leaves, block_of):
            paths = {path: array_paths(path, self._leaves[path]) for path in block}
            names = jax.tree.leaves(paths)
            keys = [tuple(name.split("/")) for name in names]
            where = None
            if shardings is not None:
                laid = {path: shardings(path, self._leaves[path]) for path in paths}
                where = dict(zip(keys, jax.tree.leaves(laid), strict=True))
            arrays = self._tree.read(keys, where)
            for path, names in paths.items():
                leaves = [arrays[tuple(name.split("/"))] for name in jax.tree.leaves(names)]
                yield path, jax.tree.unflatten(jax.tree.structure(names), leaves)

    def _check_arrays(self) -> None:
        stored = {"/".join(key): array.shape for key, array in self._tree.arrays.items()}
        wanted = {}
        for path, leaf in self._leaves.items():
            names = array_paths(path, leaf)
            wanted |= zip(jax.tree.leaves(names), jax.tree.leaves(leaf), strict=True)
        for problem, names in (
            ("missing", wanted.keys() - stored.keys()),
            ("unexpected", stored.keys() - wanted.keys()),
        ):
            if names:
                raise CheckpointError(f"{self._tree.folder}: {listed(sorted(names))} {problem}")
        for name, struct in wanted.items():
            check_shape(f"{self._tree.folder}: tensor {name}", stored[name], struct.shape)


def write_leaves(
    folder: Path,
    config: GriffinConfig,
    leaves: Iterable[tuple[str, Any]],
    *,
    quantization: dict[str, Any] | None = None,
    max_shard_size: int | None = None,
) -> None:
    """Does what `write_tree` does, with leaves that come one at a time; Orbax sizes its own files."""
    del max_shard_size
    # Orbax writes a whole tree at once, so the leaves wait on disk.
    with mapped_from_disk(leaves, folder) as tree:
        write_tree(folder, config, tree, quantization)


def write_tree(
    folder: Path, config: GriffinConfig, params: dict, quantization: dict[str, Any] | None = None
) -> None:
    """Writes a model into a folder that exists; griffin_config.json comes last.

    Args:
      folder: Where to write.
      config: The model's shape.
      params: The tree; its arrays may be sharded.
      quantization: The settings of packed weights, kept for the reader; None makes them from what
        is packed.

    Raises:
      CheckpointError: the leaves are not the config's own.
    """
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    check_paths(config, leaves.keys())
    arrays = {}
    for path, leaf in leaves.items():
        arrays |= zip(jax.tree.leaves(array_paths(path, leaf)), jax.tree.leaves(leaf), strict=True)
    # Orbax would otherwise hold the whole model on the host before it writes.
    gigabytes = 1 + max(array.nbytes for array in arrays.values()) // 10**9
    handler = _orbax().PyTreeCheckpointHandler(save_concurrent_gb=gigabytes)
    with _orbax().Checkpointer(handler) as checkpointer:
        checkpointer.save(
            (folder / PARAMS_FOLDER).absolute(),
            args=_orbax().args.PyTreeSave(item=flax.traverse_util.unflatten_dict(arrays, sep="/")),
        )
    values = {"format_version": _FORMAT_VERSION, "config": config.to_dict()}
    packed = {path: leaf for path, leaf in leaves.items() if is_weight(leaf)}
    if packed:
        values["packed"] = {
            path: FORMATS[leaf.quant_type].metadata(leaf) for path, leaf in packed.items()
        }
        kinds = {path: packing_of(leaf) for path, leaf in leaves.items()}
        values["quantization"] = describe_packing(kinds, model_type(config), quantization)
    write_json(folder / CONFIG_FILE, values)
