"""Files of text, read in one way by everything that reads some.

Text is UTF-8, a byte order mark at its beginning being no part of it. Lines end at \\n or \\r\\n and
nowhere else. A name that ends in .jsonl or .ndjson has a JSON value on each line that is not blank;
.xz, .lzma, .gz, .bz2 or .zst behind a name says how the file is compressed; capitals do not matter. "-" is
standard input. What is wrong is told with the file and the line.
"""

import bz2
import codecs
import contextlib
import functools
import gzip
import hashlib
import importlib
import io
import json
import lzma
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from griffin_jax.paths import STANDARD_INPUT, AnyPath, resolve

_JSON_LINES = (".jsonl", ".ndjson")
_COMPRESSED = (".xz", ".lzma", ".gz", ".bz2", ".zst")
# Decoders of text would take some of these for a text of odd characters.
_ARCHIVES = (".zip", ".tar", ".tgz", ".txz", ".7z", ".rar", ".parquet", ".arrow", ".npy", ".npz")
_MARKS = {
    b"\xfd7zXZ\0": "xz data: let its name end in .xz",
    b"\x1f\x8b": "gzip data: let its name end in .gz",
    b"BZh": "bzip2 data: let its name end in .bz2",
    b"\x28\xb5\x2f\xfd": "zstd data: let its name end in .zst",
    b"PK\3\4": "a zip archive: unpack it first",
    codecs.BOM_UTF32_LE: "UTF-32: save it as UTF-8",
    codecs.BOM_UTF16_LE: "UTF-16: save it as UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16: save it as UTF-8",
}


class TextFileError(ValueError):
    """A file of text cannot be read; one line names it and says where and why."""


class TextFile:
    """A file of text.

    It may be read several times, standard input and pipes too.

    Attributes:
      name: What messages call it.
      json_lines: Whether its name says that each line is a JSON value.
    """

    def __init__(
        self,
        path: AnyPath,
        kind: str = "",
        error: Callable[[str], Exception] = TextFileError,
    ):
        """Raises FileNotFoundError where there is none, and `error` where it is no file of text.

        Args:
          path: Where it is; "-" is standard input.
          kind: What messages say before the name, such as "corpus".
          error: The class of errors that say what is wrong with the file.
        """
        self._error, self._before = error, f"{kind} " if kind else ""
        self._path: Path | None = None
        if _is_standard_input(path):
            self.name, self._suffixes = "standard input", []
        else:
            self._path = resolve(path, kind or "path")
            self.name = str(self._path)
            self._suffixes = [suffix.lower() for suffix in self._path.suffixes]
        self._compression = ""
        if self._last_suffix() in _COMPRESSED:
            self._compression = self._suffixes.pop()
        self.json_lines = self._last_suffix() in _JSON_LINES
        self._check()

    def __str__(self) -> str:
        return self.name

    def fault(self, what: str, line: int | None = None) -> Exception:
        """Returns the error that says what is wrong with the file, or with a line of it, from 1."""
        place = "" if line is None else f", line {line}"
        return self._error(f"{self._before}{self.name}{place}: {what}")

    def text(self) -> str:
        """Reads all of it.

        Raises:
          TextFileError: (or the error that was given) it is damaged or not UTF-8.
        """
        with self._open() as file:
            data = file.read()
        return self._decode(data.removeprefix(codecs.BOM_UTF8))

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yields the number, from 1, and the text of every line, without its end.

        Raises:
          TextFileError: (or the error that was given) it is damaged or not UTF-8.
        """
        for number, line in self._lines():
            yield number, self._decode(line, number)

    def records(self) -> Iterator[tuple[int, Any]]:
        """Yields the number, from 1, and the JSON value of every line that is not blank.

        Raises:
          TextFileError: (or the error that was given) it is damaged, not UTF-8 or not JSON lines.
        """
        for number, line in self._lines(keep_ends=True):
            text = self._decode(line, number)
            if not text.strip():
                continue
            try:
                yield number, json.loads(text)
            except RecursionError:
                raise self.fault("JSON in JSON beyond all bounds", number) from None
            except ValueError as error:
                if not line.endswith(b"\n"):
                    what = "the file ends amid it: truncated"
                else:
                    what = f"not JSON: {getattr(error, 'msg', error)}"
                raise self.fault(what, number) from error

    def strings(self, field: str) -> Iterator[tuple[int, str]]:
        """Yields the number of every line that is not blank, and the text in `field` of its object.

        Raises:
          TextFileError: (or the error that was given) as `records`, or a line has no such text.
        """
        for number, record in self.records():
            value = record.get(field) if isinstance(record, dict) else None
            if not isinstance(value, str):
                raise self.fault(f'no "{field}" string in it', number)
            yield number, self.check_text(value, number)

    def check_text(self, text: str, line: int) -> str:
        """Returns the text of a JSON value, which may hold what is no character.

        Raises:
          TextFileError: (or the error that was given) it does.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            what = f"\\u{ord(text[error.start]):04x} is half a character (a lone surrogate)"
            raise self.fault(what, line) from None
        return text

    def digest(self) -> bytes:
        """Returns SHA-256 of the file as it is stored."""
        with self._stored() as file:
            return hashlib.file_digest(file, "sha256").digest()

    def is_empty(self) -> bool:
        """Returns whether the file as it is stored has no byte."""
        with self._stored() as file:
            return not file.read(1)

    def _last_suffix(self) -> str:
        return self._suffixes[-1] if self._suffixes else ""

    def _check(self) -> None:
        if self._path is None:
            if sys.stdin is None:
                raise self.fault("it is closed")
            return
        try:
            mode = self._path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"{self._before}{self.name}: there is no such file") from None
        except OSError as error:
            raise self.fault(str(error.strerror)) from error
        if stat.S_ISDIR(mode):
            raise self.fault("it is a folder; give a file")
        if self._last_suffix() in _ARCHIVES:
            raise self.fault(f"a {self._last_suffix()} file is no text; unpack or convert it first")
        if self._compression == ".zst" and _zstd_opener() is None:
            raise self.fault("reading .zst takes `pip install backports.zstd`, or unpack it first")

    def _lines(self, keep_ends: bool = False) -> Iterator[tuple[int, bytes]]:
        with self._open() as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                yield number, line if keep_ends else line.removesuffix(b"\n").removesuffix(b"\r")

    def _decode(self, data: bytes, line: int | None = None) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            if line in (None, 1):
                for mark, what in _MARKS.items():
                    if data.startswith(mark):
                        raise self.fault(f"it is {what}") from None
            place = f"byte {error.start}" if line is None else f"line {line}, byte {error.start}"
            raise self._error(f"{self._before}{self.name}: not UTF-8 at {place}") from error

    @contextlib.contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        openers = {".gz": gzip.open, ".bz2": bz2.open, ".zst": _zstd_opener()}
        openers |= dict.fromkeys((".xz", ".lzma"), lzma.open)
        try:
            with self._stored() as stored:
                if not self._compression:
                    yield stored
                    return
                with openers[self._compression](stored) as file:
                    yield file
        except (lzma.LZMAError, zlib.error, EOFError, OSError) as error:
            raise self._unreadable(error) from error
        except Exception as error:
            if type(error).__name__ != "ZstdError":  # of whichever library there is
                raise
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> Exception:
        if self._compression and getattr(error, "errno", None) is None:
            return self.fault(f"truncated or damaged {self._compression} file ({error})")
        return self.fault(getattr(error, "strerror", None) or str(error))

    def _stored(self) -> BinaryIO:
        if self._path is not None and self._path.is_file():
            return self._path.open("rb")
        return io.BytesIO(self._stream)

    @functools.cached_property
    def _stream(self) -> bytes:
        return _read_standard_input(sys.stdin) if self._path is None else self._path.read_bytes()


def read_json(
    path: Path, kind: type = dict, error: Callable[[str], Exception] = TextFileError
) -> Any:
    """Returns what a file of JSON holds.

    Args:
      path: The file.
      kind: What it must hold, dict or list.
      error: Makes the error of a message.

    Raises:
      TextFileError: (or the error that was given) it is no JSON, or holds something else.
      OSError: it cannot be read.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as cause:
        raise error(f"{path} is not JSON: {cause}") from None
    if not isinstance(values, kind):
        raise error(f"{path} must hold a JSON {'object' if kind is dict else 'list'}")
    return values


def find_json_lines(
    folder: Path, stem: str, error: Callable[[str], Exception] = TextFileError
) -> Path:
    """Returns the file of JSON lines of that stem in a folder, packed or not; STEM.jsonl if there
    is none.

    Raises:
      TextFileError: (or the error that was given) there are several.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        entries = []
    wanted = {f"{kind}{packed}" for kind in _JSON_LINES for packed in ("", *_COMPRESSED)}
    found = [
        entry
        for entry in entries
        if entry.name.startswith(f"{stem}.") and entry.name[len(stem) :].lower() in wanted
    ]
    if len(found) > 1:
        raise error(f"{found[0]} and {found[1].name} are there: keep one of them")
    return found[0] if found else folder / f"{stem}{_JSON_LINES[0]}"


def _is_standard_input(path: AnyPath) -> bool:
    return isinstance(path, str) and path == STANDARD_INPUT


@functools.lru_cache(maxsize=1)
def _read_standard_input(stream: TextIO) -> bytes:
    return stream.buffer.read()


def _zstd_opener() -> Callable[[BinaryIO], BinaryIO] | None:
    """Returns what opens a stream of zstd data; None without a library that notices its end
    missing.
    """
    for library in ("compression", "backports"):  # of Python 3.14, and for earlier ones
        try:
            return importlib.import_module(f"{library}.zstd").open
        except ImportError:
            continue
    return None
