"""Safetensors files, one or many with an index, read and written a tensor at a time.

A file is eight bytes with the header's length, a JSON header of dtypes, shapes and offsets, and the
tensors' bytes without gaps (https://github.com/huggingface/safetensors#format).
"""

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from griffin_jax.errors import CheckpointError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_SIZE = 5_000_000_000

DTYPES = {
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
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_LENGTH_BYTES = 8
# The header stands before the tensors but is known after them, so room is kept for it.
_HEADER_ROOM = 2**18
_ALIGNMENT = 8
_LONGEST_HEADER = 100_000_000  # the format's own limit


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor.

    Attributes:
      file: The safetensors file it is in.
      offset: The offset of its first byte in that file.
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
        # As transformers has it, an index beside a file that holds everything means nothing.
        if (self.folder / WEIGHTS_FILE).is_file():
            self._tensors = read_header(self.folder / WEIGHTS_FILE)
        elif (self.folder / INDEX_FILE).is_file():
            self._read_shards(_read_index(self.folder / INDEX_FILE))
        else:
            raise CheckpointError(
                f"{self.folder} has no weights: expected {WEIGHTS_FILE}, or {INDEX_FILE} with its "
                "shards (PyTorch .bin files are not read)"
            )

    def _read_shards(self, weight_map: dict[str, str]) -> None:
        for name in sorted(set(weight_map.values())):
            if not (self.folder / name).is_file():
                raise CheckpointError(f"{self.folder}: shard {name} is missing ({INDEX_FILE})")
            for tensor, info in read_header(self.folder / name).items():
                if tensor in self._tensors:
                    raise CheckpointError(
                        f"{self.folder}: tensor {tensor} is in {self._tensors[tensor].file.name} and "
                        f"in {name}; take one of them out"
                    )
                self._tensors[tensor] = info
        for tensor, name in weight_map.items():
            if tensor not in self._tensors or self._tensors[tensor].file.name != name:
                raise CheckpointError(
                    f"{self.folder}: tensor {tensor} is in {INDEX_FILE} but not in {name}"
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
        """Returns the tensor called `name`, mapped read-only from disk for as long as it is
        referenced.
        """
        return read_tensor(self._tensors[name])


def read_tensor(info: TensorInfo) -> np.ndarray:
    """Returns a tensor, mapped read-only from disk for as long as it is referenced."""
    if not info.nbytes:
        return np.empty(info.shape, info.dtype)
    # A mapping of its own for each tensor: dropping the array gives its memory back.
    raw = np.memmap(info.file, np.uint8, mode="r", offset=info.offset, shape=(info.nbytes,))
    return raw.view(np.ndarray).view(info.dtype).reshape(info.shape)


def _read_index(path: Path) -> dict[str, str]:
    """Returns the file of each tensor. Its `total_size` says nothing that the files do not."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = set(weight_map.values())
        if not files or not all(isinstance(file, str) for file in files):
            raise ValueError("weight_map names no files")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not an index: expected JSON with a weight_map") from error
    for file in sorted(files):
        if Path(file).name != file:
            raise CheckpointError(f"{path}: {file!r:.80} is no file of this folder")
    return weight_map


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Returns the tensors in one safetensors file, whose bytes they share out without gap or
    overlap.

    Raises:
      CheckpointError: the file is truncated, or no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        start = _LENGTH_BYTES + length
        if size < _LENGTH_BYTES or size < start:
            raise CheckpointError(f"{path} is truncated: {size} bytes do not hold its header")
        if length > _LONGEST_HEADER:
            raise CheckpointError(
                f"{path} is not a safetensors file: its header has {length} bytes"
            )
        header = file.read(length)
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_without_duplicates)
        if not isinstance(entries, dict):
            raise ValueError("it is no JSON object")
        _check_metadata(entries.pop("__metadata__", None))
        spans = {name: _span(name, entry) for name, entry in entries.items()}
        tensors = {
            name: TensorInfo(path, start + begin, tuple(entries[name]["shape"]), dtype)
            for name, (begin, _, dtype) in spans.items()
        }
        _check_spans(spans)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: its header: {error}") from error
    end = start + max((end for _, end, _ in spans.values()), default=0)
    if size < end:
        raise CheckpointError(f"{path} is truncated: {size} bytes where its header says {end}")
    if size > end:
        raise CheckpointError(
            f"{path} is damaged: {size} bytes, and {size - end} at its end belong to no tensor"
        )
    return tensors


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r:.80} comes twice")
    return values


def _check_metadata(values: Any) -> None:
    if values is not None and not (
        isinstance(values, dict) and all(isinstance(value, str) for value in values.values())
    ):
        raise ValueError("__metadata__ holds something else than text")


def _span(name: str, entry: Any) -> tuple[int, int, np.dtype]:
    """Returns where a tensor begins and ends behind the header, and its dtype."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"tensor {name} lacks dtype, shape or data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    for key, sizes in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(sizes, list) or not all(type(x) is int and 0 <= x < 2**63 for x in sizes):
            raise ValueError(f"tensor {name}: {key} {sizes!r:.80} are no sizes")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise ValueError(f"tensor {name} has dtype {entry['dtype']}, which is not supported")
    if len(offsets) != 2:
        raise ValueError(f"tensor {name}: data_offsets {offsets!r:.80} are not two")
    (begin, end), dtype = offsets, DTYPES[entry["dtype"]]
    needed = math.prod(shape) * dtype.itemsize
    if needed != end - begin:
        raise ValueError(
            f"tensor {name} takes {end - begin} bytes, but its shape {tuple(shape)} and dtype "
            f"{dtype} need {needed}"
        )
    return begin, end, dtype


def _check_spans(spans: dict[str, tuple[int, int, np.dtype]]) -> None:
    """Every byte belongs to one tensor."""
    before, after = None, 0
    for name in sorted(spans, key=lambda name: spans[name][:2]):
        begin, end, _ = spans[name]
        if begin != after:
            what = "a gap before it" if begin > after else f"the bytes of tensor {before} too"
            raise ValueError(
                f"tensor {name} has {what} (data_offsets begin at {begin}, not {after})"
            )
        before, after = name, end


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
        self._file.write(memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
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
