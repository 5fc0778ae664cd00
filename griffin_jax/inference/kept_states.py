"""States that are kept within given bytes: on the device, in the host's memory and in a folder."""

import collections
import itertools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from absl import logging

from griffin_jax import files, paths
from griffin_jax.inference.row_states import nbytes
from griffin_jax.models.stack import AnyState
from griffin_jax.paths import AnyPath

_SUFFIX = ".prefix-state"


class KeptState:
    """A state of one row, wherever it lies.

    Attributes:
      state: The arrays, on the device or the host; None while they are in a file.
      nbytes: What they take.
      sharding: Where each of them lies on the device.
      file: The file that holds them; None while they are in memory.
      checksum: The CRC-32 of what the file holds.
      structure: The tree that the arrays make.
      dtypes: Those of the arrays, in order; NumPy's reader of safetensors does not know all of them.
    """

    def __init__(self, state: AnyState):
        self.state: AnyState | None = state
        self.nbytes = nbytes(state)
        self.sharding = jax.tree.map(lambda x: x.sharding, state)
        self.file: Path | None = None
        self.checksum = 0
        self.structure = jax.tree.structure(state)
        self.dtypes = [x.dtype for x in jax.tree.leaves(state)]


class Tier:
    """One place for states, and how many bytes they may take there.

    Attributes:
      most: Bytes at most.
      nbytes: Bytes now.
    """

    def __init__(self, most: int):
        self.most, self.nbytes = most, 0
        # From the least to the most recently used.
        self._kept: collections.OrderedDict[KeptState, None] = collections.OrderedDict()

    def __contains__(self, kept: KeptState) -> bool:
        return kept in self._kept

    def __iter__(self) -> Any:
        return iter(self._kept)

    def add(self, kept: KeptState) -> None:
        """Adds a state, as the most recently used one."""
        self._kept[kept] = None
        self.nbytes += kept.nbytes

    def remove(self, kept: KeptState) -> None:
        """Removes a state."""
        del self._kept[kept]
        self.nbytes -= kept.nbytes

    def touch(self, kept: KeptState) -> None:
        """Makes a state the most recently used one."""
        self._kept.move_to_end(kept)

    def pop_excess(self) -> KeptState | None:
        """Removes and returns the least recently used state; None where all have room."""
        if self.nbytes <= self.most:
            return None
        oldest, _ = self._kept.popitem(last=False)
        self.nbytes -= oldest.nbytes
        return oldest


class Folder:
    """Files of states, of one cache alone.

    A file that cannot be written, or read again as it was, costs the state and nothing else; the
    first time, the log says so in one line.
    """

    def __init__(self, folder: AnyPath):
        """Takes a folder, which is made where there is none.

        Files of a cache that is no more are removed from it.

        Raises:
          ValueError: the folder holds what no cache has written.
          OutputError: (an OSError) it cannot be written.
        """
        self._folder = paths.make_folder(folder, "folder")
        names = sorted(path.name for path in self._folder.iterdir())
        ours = {
            name for name in names if name.endswith(_SUFFIX) and not (self._folder / name).is_dir()
        }
        foreign = [name for name in names if name not in ours]
        if foreign:
            raise ValueError(
                f"folder={folder} holds {foreign[0]}, which is no file of a prefix cache; give an "
                "empty folder"
            )
        for name in names:
            (self._folder / name).unlink()
        with files.new_file(self._folder / f"0{_SUFFIX}"):
            pass
        (self._folder / f"0{_SUFFIX}").unlink()
        self._numbers = itertools.count(1)
        self._told = False

    def write(self, kept: KeptState) -> bool:
        """Moves a state from the host's memory into a file; returns whether that could be done."""
        file = self._folder / f"{next(self._numbers)}{_SUFFIX}"
        arrays = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(kept.state))}
        try:
            data = safetensors.numpy.save(arrays)
            with files.new_file(file) as opened:
                opened.write(data)
        except OSError as error:
            self._tell("write", error)
            return False
        kept.checksum, kept.file, kept.state = zlib.crc32(data), file, None
        return True

    def read(self, kept: KeptState) -> bool:
        """Moves a state from its file into the host's memory; returns whether it was there."""
        file, kept.file = kept.file, None
        try:
            data = file.read_bytes()
            file.unlink()
            if zlib.crc32(data) != kept.checksum:
                raise ValueError(f"{file} is not what was written")
            arrays = dict(safetensors.deserialize(data))
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            self._tell("read", error)
            return False
        leaves = [
            np.frombuffer(arrays[str(i)]["data"], dtype).reshape(arrays[str(i)]["shape"])
            for i, dtype in enumerate(kept.dtypes)
        ]
        kept.state = jax.tree.unflatten(kept.structure, leaves)
        return True

    def remove(self, kept: KeptState) -> None:
        """Removes the file of a state."""
        file, kept.file = kept.file, None
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            self._tell("remove", error)

    def _tell(self, what, error):
        if not self._told:
            logging.warning("the prefix cache cannot %s its folder's files: %s", what, error)
        self._told = True


class Tiers:
    """The device, then the host, then a folder: the least recently used state moves down, then goes."""

    def __init__(
        self,
        device_bytes: int,
        host_bytes: int,
        folder_bytes: int,
        folder: Folder | None,
        gone: Callable[[KeptState], None],
    ):
        self.device, self.host, self.disk = Tier(device_bytes), Tier(host_bytes), Tier(folder_bytes)
        self._folder = folder
        self._gone = gone

    def add(self, kept: KeptState) -> None:
        """Keeps a state that lies on the device, as the most recently used one."""
        self.device.add(kept)
        while (oldest := self.device.pop_excess()) is not None:
            whole = all(leaf.is_fully_addressable for leaf in jax.tree.leaves(oldest.state))
            if not whole:
                self._gone(oldest)
                continue
            if oldest.nbytes > max(self.host.most, self.disk.most):
                self._gone(oldest)
                continue
            try:
                oldest.state = jax.device_get(oldest.state)
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                logging.warning("the prefix cache cannot bring a state to the host: %s", error)
                self._gone(oldest)
                continue
            self.host.add(oldest)
        while (oldest := self.host.pop_excess()) is not None:
            if oldest.nbytes > self.disk.most or not self._folder.write(oldest):
                self._gone(oldest)
                continue
            self.disk.add(oldest)
        while (oldest := self.disk.pop_excess()) is not None:
            self._folder.remove(oldest)
            self._gone(oldest)

    def touch(self, kept: KeptState) -> None:
        """Makes a state the most recently used one of its place."""
        next(tier for tier in (self.device, self.host, self.disk) if kept in tier).touch(kept)

    def use(self, kept: KeptState) -> AnyState | None:
        """Returns the state on the device, as the most recently used one; None where its file is
        lost, or the device has no room: the state is then gone.
        """
        if kept in self.device:
            self.device.touch(kept)
            return kept.state
        if kept in self.disk:
            self.disk.remove(kept)
            if not self._folder.read(kept):
                self._gone(kept)
                return None
        else:
            self.host.remove(kept)
        try:
            state = kept.state = jax.device_put(kept.state, kept.sharding)
        except jax.errors.JaxRuntimeError as error:
            logging.warning("the prefix cache cannot bring a state back to the device: %s", error)
            self._gone(kept)
            return None
        self.add(kept)
        return state

    def clear(self) -> None:
        """Lets go of all states."""
        for kept in self.disk:
            self._folder.remove(kept)
        self.device, self.host, self.disk = (
            Tier(tier.most) for tier in (self.device, self.host, self.disk)
        )
