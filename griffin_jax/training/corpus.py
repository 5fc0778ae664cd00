"""Text on disk to one flat array of tokens, kept in a memory-mapped file."""

import dataclasses
import hashlib
import itertools
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from griffin_jax.files import new_file, write_json
from griffin_jax.locks import Lock
from griffin_jax.paths import AnyPath, make_folder, resolve
from griffin_jax.text_files import TextFile, read_json
from griffin_jax.training.encoding import DocumentEncoder, encode_all

_TOKEN_FILES = (".npy", ".bin")


class CorpusError(ValueError):
    """A corpus file cannot be read; the message names it and says why."""


class CorpusTokenizer(DocumentEncoder, Protocol):
    """A tokenizer whose ids a corpus consists of."""

    vocab_size: int
    bos_id: int


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
        """Returns the index of the document that the token at `offset` belongs to."""
        return max(int(np.count_nonzero(self.tokens[: offset + 1] == self.bos_id)) - 1, 0)


def load_corpus(
    paths: Sequence[AnyPath] | AnyPath, tokenizer: CorpusTokenizer, cache: AnyPath
) -> Corpus:
    """Opens a corpus, tokenizing text on the first call and mapping the cached file after that.

    Args:
      paths: Either one file of tokens, .npy (integers of a width that holds the whole vocabulary)
        or .bin (little-endian uint16, for vocabularies of up to 65,536), in which
        `tokenizer.bos_id` begins each document; or files of text: .jsonl has an object with a
        "text" string a line, any other name is one document; see `text_files` for what either may
        be called and packed in.
      tokenizer: Encodes the text and gives the ids of BOS and EOS.
      cache: Folder of tokenized corpora; a file there is named by the text and the tokenizer.

    Raises:
      FileNotFoundError: a file is missing.
      CorpusError: a file is empty, truncated, not UTF-8 or not what its name says.
      OutputError: (an OSError) the cache cannot be written, or the disk is full.
    """
    if isinstance(paths, AnyPath):
        paths = [paths]
    if not paths:
        raise CorpusError("corpus: no file given")
    token_files = [path for path in paths if _is_token_file(path)]
    if token_files:
        path = resolve(token_files[0], "corpus")
        if len(paths) > 1:
            raise CorpusError(f"corpus {path}: a token file must be the only file, got {paths}")
        return Corpus(str(path), _open_tokens(path, tokenizer), tokenizer.bos_id)

    files = [_text_file(path) for path in paths]
    for file in files:
        if file.is_empty():
            raise file.fault("the file is empty")
    cache = make_folder(cache, "cache")
    target = cache / f"{_fingerprint(files, tokenizer)}.npy"
    facts = target.with_suffix(".json")
    # Several runs over one corpus tokenize it once.
    with Lock(target.with_suffix(".lock"), f"the corpus {files[0]} in {cache}").waiting():
        if not (target.exists() and facts.exists()):
            _tokenize(files, tokenizer, target)
    name = ", ".join(map(str, files))
    num_bytes = read_json(facts)["bytes"]
    return Corpus(name, np.load(target, mmap_mode="r"), tokenizer.bos_id, num_bytes)


def read_documents(path: AnyPath) -> Iterator[str]:
    """Returns the texts of one file; see `load_corpus` for kinds of files and errors."""
    return _documents(_text_file(path))


def _is_token_file(path: AnyPath) -> bool:
    return isinstance(path, AnyPath) and Path(os.fsdecode(path)).suffix.lower() in _TOKEN_FILES


def _text_file(path: AnyPath) -> TextFile:
    return TextFile(path, "corpus", CorpusError)


def _documents(file: TextFile) -> Iterator[str]:
    if file.json_lines:
        yield from (text for _, text in file.strings("text"))
    else:
        yield file.text()


def _open_tokens(path: Path, tokenizer: CorpusTokenizer) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"corpus {path}: there is no such file")
    if not path.stat().st_size:
        raise CorpusError(f"corpus {path}: the file is empty")
    if path.suffix.lower() == ".bin":
        if path.stat().st_size % 2:
            raise CorpusError(
                f"corpus {path}: {path.stat().st_size} bytes do not divide into uint16 tokens: "
                "truncated"
            )
        tokens = np.memmap(path, dtype="<u2", mode="r")
        if len(tokens) > 3 and not tokens[1::2].any():
            raise CorpusError(
                f"corpus {path}: every second uint16 is 0, as of 32-bit tokens; a .bin holds 16-bit "
                "ones, so write a .npy of uint32"
            )
    else:
        try:
            tokens = np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise CorpusError(f"corpus {path}: truncated or not a .npy file ({error})") from error
    if tokens.ndim != 1 or tokens.dtype.kind not in "ui" or not len(tokens):
        raise CorpusError(
            f"corpus {path}: expected integers [n], got {tokens.dtype}{list(tokens.shape)}"
        )
    most = np.iinfo(tokens.dtype).max
    if most < tokenizer.vocab_size - 1:
        raise CorpusError(
            f"corpus {path}: {tokens.dtype} holds ids up to {most}, and the vocabulary has "
            f"{tokenizer.vocab_size}: these tokens are another vocabulary's, or were cut; write a "
            ".npy of uint32"
        )
    _check_ids(str(path), tokens, tokenizer.vocab_size)
    return tokens


def _check_ids(name: str, tokens: np.ndarray, vocab_size: int) -> None:
    """Raises CorpusError where a token is below 0 or beyond the vocabulary."""
    for token in (tokens.min(), tokens.max()):
        if not 0 <= token < vocab_size:
            raise CorpusError(
                f"corpus {name}: token {token} is outside the vocabulary of {vocab_size}"
            )


def _fingerprint(files: Sequence[TextFile], tokenizer: CorpusTokenizer) -> str:
    digest = hashlib.sha256(pickle.dumps(tokenizer))
    for file in files:
        # The same bytes are other documents under another kind of name.
        digest.update(file.digest() + (b"lines" if file.json_lines else b"text"))
    return digest.hexdigest()[:16]


def _tokenize(files: Sequence[TextFile], tokenizer: CorpusTokenizer, target: Path) -> None:
    """Writes `target` (.npy) and, last, its .json with the number of bytes."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    documents = itertools.chain.from_iterable(map(_documents, files))
    count = num_bytes = 0
    with new_file(target) as output:
        _write_header(output, dtype, 0)
        for tokens, size in encode_all(documents, tokenizer):
            _check_ids(target.name, tokens, tokenizer.vocab_size)
            output.write(tokens.astype(dtype).tobytes())
            count += len(tokens)
            num_bytes += size
        if not num_bytes:
            raise CorpusError(f"corpus {', '.join(map(str, files))}: holds no text")
        _write_header(output, dtype, count)
    write_json(target.with_suffix(".json"), {"bytes": num_bytes, "tokens": count})


def _write_header(file: BinaryIO, dtype: np.dtype, count: int) -> None:
    # NumPy pads this header so that it keeps its length when the first axis grows.
    file.seek(0)
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": (count,)}
    )
