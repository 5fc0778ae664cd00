"""Safetensors files, one or many with an index, read and written a tensor at a time.

A file is eight bytes with the header's length, a JSON header of dtypes, shapes and offsets, and the
tensors' bytes without gaps (https://github.com/huggingface/safetensors#format).
"""

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

from griffin_jax.errors import CheckpointError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_SIZE = 5_000_000_000

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_LENGTH_BYTES = 8
# The header stands before the tensors but is known after them, so room is kept for it.
_HEADER_ROOM = 2**18
_ALIGNMENT = 8


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor.

    Attributes:
      file: The safetensors file it is in.
      offset: Of its first byte in that file.
      shape: Its shape.
      dtype: Its numpy dtype; bfloat16 is that of ml_dtypes.
    """

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorReader:
    """The tensors of a folder: `reader[name]` describes one, `reader.read(name)` reads it.

    Opening reads the headers only.

    Raises:
      CheckpointError: the folder has no weights; a shard is missing, truncated or no safetensors
        file; the index names a tensor that its shard has not.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._tensors: dict[str, TensorInfo] = {}
        index = self.folder / INDEX_FILE
        if index.is_file():
            weight_map = _read_index(index)
            for name in sorted(set(weight_map.values())):
                if not (self.folder / name).is_file():
                    raise CheckpointError(f"{self.folder}: shard {name} is missing ({INDEX_FILE})")
                self._tensors |= read_header(self.folder / name)
            for name, file in weight_map.items():
                if name not in self._tensors:
                    raise CheckpointError(
                        f"{self.folder}: tensor {name} is in {INDEX_FILE} but not in {file}"
                    )
        elif (self.folder / WEIGHTS_FILE).is_file():
            self._tensors = read_header(self.folder / WEIGHTS_FILE)
        else:
            raise CheckpointError(
                f"{self.folder} has no weights: expected {WEIGHTS_FILE}, or {INDEX_FILE} with its "
                "shards (PyTorch .bin files are not read)"
            )

    @property
    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> TensorInfo:
        return self._tensors[name]

    @property
    def nbytes(self) -> int:
        """The size of all tensors in bytes."""
        return sum(info.nbytes for info in self._tensors.values())

    def read(self, name: str) -> np.ndarray:
        """The tensor called `name`, mapped read-only from disk for as long as it is referenced."""
        return read_tensor(self._tensors[name])


def read_tensor(info: TensorInfo) -> np.ndarray:
    """A tensor, mapped read-only from disk for as long as it is referenced."""
    if not info.nbytes:
        return np.empty(info.shape, info.dtype)
    # A mapping of its own for each tensor: dropping the array gives its memory back.
    raw = np.memmap(info.file, np.uint8, mode="r", offset=info.offset, shape=(info.nbytes,))
    return raw.view(np.ndarray).view(info.dtype).reshape(info.shape)


def _read_index(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not an index: expected JSON with a weight_map") from error


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors in one safetensors file.

    Raises:
      CheckpointError: the file is truncated, or no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        start = _LENGTH_BYTES + length
        if size < _LENGTH_BYTES or size < start:
            raise CheckpointError(f"{path} is truncated: {size} bytes do not hold its header")
        header = file.read(length)
    tensors = {}
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            if entry["dtype"] not in _DTYPES:
                raise CheckpointError(
                    f"{path}: tensor {name} has dtype {entry['dtype']}, which is not supported"
                )
            info = TensorInfo(path, start + begin, tuple(entry["shape"]), _DTYPES[entry["dtype"]])
            if info.nbytes != end - begin:
                raise CheckpointError(
                    f"{path}: tensor {name} takes {end - begin} bytes, but its shape "
                    f"{info.shape} and dtype {info.dtype} need {info.nbytes}"
                )
            tensors[name] = info
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: its header is no JSON") from error
    end = max((info.offset + info.nbytes for info in tensors.values()), default=start)
    if size < end:
        raise CheckpointError(f"{path} is truncated: {size} bytes where its header says {end}")
    return tensors


class ShardWriter:
    """Writes `model.safetensors`, or shards and their index, into a folder.

    In a `with` block, `add` each tensor, then `finish`. Memory holds one tensor at a time, and those
    few whose size is no multiple of eight bytes until their shard is full. Nothing carries a final
    name before `finish`.

    Args:
      folder: Where to write; must exist.
      max_shard_size: Bytes of tensors in a shard; a larger tensor gets a shard of its own.
    """

    def __init__(self, folder: str | Path, max_shard_size: int = MAX_SHARD_SIZE):
        self._folder = Path(folder)
        self._max_shard_size = max_shard_size
        self._closed: list[_Shard] = []
        self._shard: _Shard | None = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        # What is on its way may have to be removed, and cannot be while it is open on Windows.
        if kind is not None and self._shard is not None:
            self._shard.leave()

    def add(self, name: str, array: np.ndarray) -> None:
        """Appends one tensor."""
        array = np.asarray(array)
        if self._shard is None or not self._shard.has_room(name, array, self._max_shard_size):
            self._close_shard()
            self._shard = _Shard(self._folder / f"shard-{len(self._closed):05d}.partial")
        self._shard.add(name, array)

    def finish(self) -> list[Path]:
        """Gives the files their names and writes the index; returns the weight files."""
        self._close_shard()
        count = len(self._closed)
        if count == 1:
            return [self._closed[0].path.rename(self._folder / WEIGHTS_FILE)]
        files, weight_map = [], {}
        for i, shard in enumerate(self._closed, start=1):
            files.append(
                shard.path.rename(self._folder / f"model-{i:05d}-of-{count:05d}.safetensors")
            )
            weight_map |= dict.fromkeys(shard.names, files[-1].name)
        total = sum(shard.nbytes for shard in self._closed)
        index = {
            "metadata": {"total_size": total},
            "weight_map": dict(sorted(weight_map.items())),
        }
        text = json.dumps(index, indent=2) + "\n"
        (self._folder / INDEX_FILE).write_text(text, encoding="utf-8")
        return files

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._closed.append(self._shard)
            self._shard = None


class _Shard:
    """One safetensors file on its way."""

    def __init__(self, path: Path):
        self.path = path
        self.nbytes = 0
        self._offset = 0
        self._entries: dict[str, dict] = {}
        self._header_size = len(json.dumps(_header({})))
        self._waiting: list[tuple[str, np.ndarray]] = []
        self._file: BinaryIO = path.open("wb")
        self._file.seek(_LENGTH_BYTES + _HEADER_ROOM)

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def has_room(self, name: str, array: np.ndarray, limit: int) -> bool:
        header = self._header_size + _header_share(name, array)
        return self.nbytes + array.nbytes <= limit and header <= _HEADER_ROOM

    def add(self, name: str, array: np.ndarray) -> None:
        self.nbytes += array.nbytes
        self._header_size += _header_share(name, array)
        # Readers want tensors aligned and the format allows no gaps, so odd sizes come last.
        if array.nbytes % _ALIGNMENT:
            self._waiting.append((name, array.copy()))
        else:
            self._write(name, array)

    def close(self) -> None:
        for name, array in sorted(self._waiting, key=lambda item: -item[1].dtype.itemsize):
            self._write(name, array)
        header = json.dumps(_header(self._entries)).encode().ljust(_HEADER_ROOM)
        self._file.seek(0)
        self._file.write(_HEADER_ROOM.to_bytes(_LENGTH_BYTES, "little") + header)
        self._file.close()

    def leave(self) -> None:
        """Closes the file, which is not complete."""
        with contextlib.suppress(OSError):  # the disk may be full
            self._file.close()

    def _write(self, name: str, array: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        self._entries[name] = _entry(array, self._offset)
        self._offset += array.nbytes


def _header(entries: dict[str, dict]) -> dict:
    # transformers refuses a file that does not say which framework's layout it has.
    return {"__metadata__": {"format": "pt"}, **entries}


def _entry(array: np.ndarray, offset: int) -> dict:
    return {
        "dtype": _CODES[array.dtype],
        "shape": list(array.shape),
        "data_offsets": [offset, offset + array.nbytes],
    }


def _header_share(name: str, array: np.ndarray) -> int:
    """At most so many bytes of the header are about this tensor."""
    largest_offset = 2**50
    return len(json.dumps({name: _entry(array, largest_offset)})) + len(", ")
