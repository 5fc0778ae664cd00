"""Our own checkpoint: an Orbax tree in `params/`, and `griffin_config.json` beside it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
import orbax.checkpoint as ocp

from griffin_jax.checkpoints.errors import CheckpointError
from griffin_jax.checkpoints.files import listed, read_json, write_json
from griffin_jax.checkpoints.tree import check_shape, flat_abstract_params, model_order
from griffin_jax.config import GriffinConfig

CONFIG_FILE = "griffin_config.json"
PARAMS_FOLDER = "params"
_FORMAT_VERSION = 1
_MARKS = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")


def is_orbax_tree(folder: Path) -> bool:
    """Whether Orbax wrote a tree into this folder."""
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
        self._checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        try:
            metadata = self._checkpointer.metadata(self.folder).item_metadata.tree
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{folder} is not a complete Orbax checkpoint") from error
        self.arrays: dict[tuple[str, ...], Any] = flax.traverse_util.flatten_dict(metadata)

    @property
    def nbytes(self) -> int:
        """The size of all arrays in bytes."""
        return sum(
            int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize
            for array in self.arrays.values()
        )

    def read(self, keys: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], np.ndarray]:
        """Reads some of the arrays to the host.

        Raises:
          CheckpointError: their files are damaged.
        """
        wanted = dict.fromkeys(keys, ocp.RestoreArgs(restore_type=np.ndarray))
        restore_args = flax.traverse_util.unflatten_dict(wanted)
        args = ocp.args.PyTreeRestore(
            item=restore_args, restore_args=restore_args, partial_restore=True
        )
        try:
            restored = self._checkpointer.restore(self.folder, args=args)
        except (OSError, ValueError, KeyError) as error:
            names = listed(["/".join(key) for key in wanted])
            raise CheckpointError(
                f"{self.folder}: {names} unreadable; a file is damaged"
            ) from error
        return flax.traverse_util.flatten_dict(restored)


class OrbaxSource:
    """A checkpoint of ours, opened: names are checked, no weight is read.

    Attributes:
      config: The model's shape.
      quantization: The quantisation's settings, or None.
      nbytes: Of all weights as stored.

    Raises:
      CheckpointError: the folder is damaged or does not fit its config.
    """

    def __init__(self, folder: Path):
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
        self._shapes = flat_abstract_params(self.config)
        self._check_names()

    @property
    def nbytes(self) -> int:
        return self._tree.nbytes

    def stored_name(self, path: str) -> str:
        """How the checkpoint calls a leaf."""
        return path

    def leaves(self) -> Iterator[tuple[str, Any]]:
        """Every leaf's path and value, in the model's order; the host holds a block at a time."""
        blocks: dict[str, list[str]] = {}
        for path in sorted(self._shapes, key=model_order):
            blocks.setdefault(path.split("/")[0], []).append(path)
        for paths in blocks.values():
            arrays = self._tree.read(tuple(path.split("/")) for path in paths)
            for path in paths:
                array = arrays.pop(tuple(path.split("/")))
                check_shape(f"{self._tree.folder}: {path}", array.shape, self._shapes[path].shape)
                yield path, array

    def _check_names(self) -> None:
        stored = {"/".join(key) for key in self._tree.arrays}
        missing, unexpected = set(self._shapes) - stored, stored - set(self._shapes)
        if missing:
            raise CheckpointError(f"{self._tree.folder}: {listed(sorted(missing))} missing")
        if unexpected:
            raise CheckpointError(f"{self._tree.folder}: {listed(sorted(unexpected))} unexpected")


def write_orbax(
    folder: Path, config: GriffinConfig, params: dict, quantization: dict[str, Any] | None = None
) -> None:
    """Writes a model into a folder that exists; griffin_config.json comes last.

    Args:
      folder: Where to write.
      config: The model's shape.
      params: The tree; its arrays may be sharded.
      quantization: The quantisation's settings, kept for the reader.
    """
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            (folder / PARAMS_FOLDER).absolute(), args=ocp.args.PyTreeSave(item=params)
        )
    values = {"format_version": _FORMAT_VERSION, "config": config.to_dict()}
    if quantization is not None:
        values["quantization"] = quantization
    write_json(folder / CONFIG_FILE, values)
