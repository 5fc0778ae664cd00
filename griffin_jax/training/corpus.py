"""Text on disk to one flat array of tokens, kept in a memory-mapped file."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import lzma
import multiprocessing
import os
import pickle
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from tqdm import tqdm

_TOKEN_FILES = (".npy", ".bin")


class CorpusError(ValueError):
    """A corpus file cannot be read; the message names it and says why."""


class CorpusTokenizer(Protocol):
    """What is asked of a tokenizer here; it must survive pickling."""

    vocab_size: int
    bos_id: int
    eos_id: int

    def encode(self, text: str, bos: bool = True) -> list[int]: ...


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents one after another.

    Attributes:
      name: What messages call it.
      tokens: Integers [n]; every document is BOS ... EOS.
      bos_id: Where it stands, a document begins.
      num_bytes: UTF-8 bytes of the text; None where only tokens are known.
    """

    name: str
    tokens: np.ndarray
    bos_id: int
    num_bytes: int | None = None

    @property
    def bytes_per_token(self) -> float | None:
        """Mean UTF-8 bytes that a predicted token stands for."""
        return self.num_bytes and self.num_bytes / len(self.tokens)

    def document_of(self, offset: int) -> int:
        """Index of the document that the token at `offset` belongs to."""
        return max(int(np.count_nonzero(self.tokens[: offset + 1] == self.bos_id)) - 1, 0)


def load_corpus(paths: Sequence[str | Path], tokenizer: CorpusTokenizer, cache: Path) -> Corpus:
    """Opens a corpus, tokenising text on the first call and mapping the cached file after that.

    Args:
      paths: Either one file of tokens, .npy (integers) or .bin (little-endian uint16), in which
        `tokenizer.bos_id` begins each document; or files of text: .jsonl has an object with a
        "text" string a line, any other name is one document; both also as .xz.
      tokenizer: Encodes the text and gives the ids of BOS and EOS.
      cache: Folder of tokenised corpora; a file there is named by the text and the tokenizer.

    Raises:
      FileNotFoundError: a file is missing.
      CorpusError: a file is empty, truncated, not UTF-8 or not what its name says.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise CorpusError("corpus: no file given")
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"corpus {path}: there is no such file")
        if not path.stat().st_size:
            raise CorpusError(f"corpus {path}: the file is empty")
    if any(path.suffix in _TOKEN_FILES for path in paths):
        if len(paths) > 1:
            raise CorpusError(f"corpus {paths[0]}: a token file must be the only file, got {paths}")
        return Corpus(str(paths[0]), _open_tokens(paths[0], tokenizer), tokenizer.bos_id)

    target = Path(cache) / f"{_fingerprint(paths, tokenizer)}.npy"
    facts = target.with_suffix(".json")
    if not (target.exists() and facts.exists()):
        _tokenize(paths, tokenizer, target)
    name = ", ".join(map(str, paths))
    num_bytes = json.loads(facts.read_text())["bytes"]
    return Corpus(name, np.load(target, mmap_mode="r"), tokenizer.bos_id, num_bytes)


def read_documents(path: Path) -> Iterator[str]:
    """The texts of one file; see `load_corpus` for kinds of files and errors."""
    path = Path(path)
    if not _is_json_lines(path):
        with _open(path) as file:
            yield _text(path, file.read())
        return
    for line, record in read_records(path):
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise CorpusError(f'corpus {path}, line {line}: no "text" string in it')
        yield record["text"]


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Number, from 1, and JSON value of every line that is not blank of a .jsonl or .jsonl.xz file.

    Raises:
      CorpusError: the file is truncated, not UTF-8 or not JSON lines.
    """
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            text = _text(path, line, number)
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except json.JSONDecodeError as error:
                fault = "not JSON" if line.endswith(b"\n") else "the file ends amid it: truncated"
                raise CorpusError(f"corpus {path}, line {number}: {fault}") from error
            yield number, record


def _is_json_lines(path: Path) -> bool:
    return path.name.removesuffix(".xz").endswith(".jsonl")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
            yield file
    except (lzma.LZMAError, EOFError) as error:
        raise CorpusError(f"corpus {path}: truncated or damaged .xz file ({error})") from error


def _text(path: Path, data: bytes, line: int | None = None) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"line {line}, byte {error.start}" if line else f"byte {error.start}"
        raise CorpusError(f"corpus {path}: not UTF-8 at {place}") from error


def _open_tokens(path: Path, tokenizer: CorpusTokenizer) -> np.ndarray:
    if path.suffix == ".bin":
        if path.stat().st_size % 2:
            raise CorpusError(
                f"corpus {path}: {path.stat().st_size} bytes do not divide into uint16 tokens: "
                "truncated"
            )
        tokens = np.memmap(path, dtype="<u2", mode="r")
    else:
        try:
            tokens = np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise CorpusError(f"corpus {path}: truncated or not a .npy file ({error})") from error
    if tokens.ndim != 1 or tokens.dtype.kind not in "ui" or not len(tokens):
        raise CorpusError(
            f"corpus {path}: expected integers [n], got {tokens.dtype}{list(tokens.shape)}"
        )
    if tokens.max() >= tokenizer.vocab_size:
        raise CorpusError(
            f"corpus {path}: token {tokens.max()} is outside the vocabulary of "
            f"{tokenizer.vocab_size}"
        )
    return tokens


def _fingerprint(paths: Sequence[Path], tokenizer: CorpusTokenizer) -> str:
    digest = hashlib.sha256(pickle.dumps(tokenizer))
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _tokenize(paths: Sequence[Path], tokenizer: CorpusTokenizer, target: Path) -> None:
    """Writes `target` (.npy) and, last, its .json with the number of bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    documents = itertools.chain.from_iterable(read_documents(path) for path in paths)
    count = num_bytes = 0
    try:
        with temporary.open("wb") as file:
            _write_header(file, dtype, 0)
            for tokens, size in _encode_all(documents, tokenizer):
                file.write(tokens.astype(dtype).tobytes())
                count += len(tokens)
                num_bytes += size
            if not num_bytes:
                raise CorpusError(f"corpus {', '.join(map(str, paths))}: holds no text")
            _write_header(file, dtype, count)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    temporary.write_text(json.dumps({"bytes": num_bytes, "tokens": count}))
    temporary.replace(target.with_suffix(".json"))


def _write_header(file: BinaryIO, dtype: np.dtype, count: int) -> None:
    # NumPy pads this header so that it keeps its length when the first axis grows.
    file.seek(0)
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": (count,)}
    )


def _encode_all(
    documents: Iterator[str], tokenizer: CorpusTokenizer
) -> Iterator[tuple[np.ndarray, int]]:
    """Tokens and UTF-8 bytes of each document, in order, encoded on all cores."""
    workers = len(os.sched_getaffinity(0))
    # A forked child of a process with threads can hang; a spawned one cannot.
    context = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(
            workers, context, _set_tokenizer, (tokenizer,)
        ) as pool,
        tqdm(desc="tokenising", unit="B", unit_scale=True) as progress,
    ):
        pending = collections.deque()

        def finished():
            tokens, size = pending.popleft().result()
            progress.update(size)
            return tokens, size

        for document in documents:
            pending.append(pool.submit(_encode, document))
            if len(pending) > 4 * workers:
                yield finished()
        while pending:
            yield finished()


def _set_tokenizer(tokenizer: CorpusTokenizer) -> None:
    global _tokenizer
    _tokenizer = tokenizer


def _encode(text: str) -> tuple[np.ndarray, int]:
    tokens = [*_tokenizer.encode(text, bos=True), _tokenizer.eos_id]
    return np.asarray(tokens), len(text.encode())
