"""Rows of training data, in an order that a seed fixes and a number resumes (Grain)."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from griffin_jax.training.corpus import Corpus, CorpusError

if TYPE_CHECKING:
    import grain

Batch = dict[str, np.ndarray]

# What is read of a corpus that may be too large to be read whole: pieces, and tokens in each.
_SAMPLES, _SAMPLE = 64, 4096

_MOST_ROWS = 2**52


class Rows(Protocol):
    """A source of training rows.

    A row is a dict of `inputs` and `targets` int32[T], `positions` int32[T] (each input's place in
    its document, 0 where one starts), `mask` float32[T] (1 where the target counts) and `start`
    int64[], which `describe` turns into words.

    A source may have a method `fingerprint() -> str` that tells its data from other data; a run is
    then not continued with other data unawares. It may have `bytes_per_token`, the mean UTF-8 bytes
    that a target stands for, or None; with it evaluations also tell bits per byte.
    """

    def __len__(self) -> int:
        """Returns the number of rows in one epoch."""
        ...

    def row(self, epoch: int, index: int) -> Batch:
        """Returns row `index` of an epoch."""
        ...

    def describe(self, starts: np.ndarray) -> str:
        """Returns where rows with these values of `start` come from, for a person."""
        ...


class Windows:
    """A corpus cut into windows of T tokens, at another offset in every epoch.

    Documents are packed: a window may hold the end of one and the beginning of the next. Every
    token is predicted once an epoch, but for less than one window at the end.
    """

    def __init__(self, corpus: Corpus, seq_len: int, seed: int = 0):
        """Raises CorpusError when the corpus is shorter than one window."""
        if len(corpus.tokens) < seq_len:
            raise CorpusError(
                f"corpus {corpus.name}: {len(corpus.tokens)} tokens are less than one sequence "
                f"of {seq_len}; give more text or a smaller seq_len"
            )
        self.corpus, self.seq_len, self.seed = corpus, seq_len, seed

    def __len__(self) -> int:
        return len(self.corpus.tokens) // self.seq_len

    @property
    def bytes_per_token(self) -> float | None:
        """Mean UTF-8 bytes that a target stands for; None where only tokens are known."""
        return self.corpus.bytes_per_token

    def row(self, epoch: int, index: int) -> Batch:
        tokens = self.corpus.tokens
        offset = np.random.default_rng((self.seed, epoch)).integers(len(tokens)) if epoch else 0
        start = (int(offset) + index * self.seq_len) % len(tokens)
        window = tokens[start : start + self.seq_len + 1]
        if len(window) <= self.seq_len:
            window = np.concatenate([window, tokens[: self.seq_len + 1 - len(window)]])
        window = window.astype(np.int32)
        inputs, targets = window[:-1], window[1:]
        begins = inputs == self.corpus.bos_id
        t = np.arange(self.seq_len, dtype=np.int32)
        return {
            "inputs": inputs,
            "targets": targets,
            "positions": t - np.maximum.accumulate(np.where(begins, t, 0)),
            # The document before says nothing about where the next one begins.
            "mask": (targets != self.corpus.bos_id).astype(np.float32),
            "start": np.asarray(start, np.int64),
        }

    def fingerprint(self) -> str:
        """Returns what tells this data from other data: its length and a sample of its tokens."""
        tokens = self.corpus.tokens
        places = np.linspace(0, max(len(tokens) - _SAMPLE, 0), _SAMPLES).astype(np.int64)
        digest = hashlib.sha256(str(len(tokens)).encode())
        for place in places:
            digest.update(np.asarray(tokens[place : place + _SAMPLE], np.int64).tobytes())
        return digest.hexdigest()[:16]

    def describe(self, starts: np.ndarray) -> str:
        last = len(self.corpus.tokens) - 1
        documents = {
            self.corpus.document_of(min(int(start) + end, last))
            for start in starts
            for end in (0, self.seq_len)
        }
        return (
            f"documents {sorted(documents)} of {self.corpus.name}, "
            f"windows of {self.seq_len} tokens at {sorted(map(int, starts))}"
        )


def training_batches(
    rows: Rows, batch_size: int, seed: int, places: Sequence[int] | None = None
) -> "grain.DatasetIterator":
    """Returns an endless iterator over batches [B, T], shuffled anew in every epoch.

    The iterator's `get_state` is a small JSON dict, and `set_state` goes on at exactly that batch,
    whatever the places were before. Batches are read ahead by threads.

    Args:
      rows: Where they come from.
      batch_size: B, over all processes.
      seed: The seed of the order.
      places: Which rows of each batch to read, as of `RowGroup.places`; None for all.
    """
    import grain  # of the extra [train], which a loop of one's own and benchmarks do without

    count = len(rows)
    own = np.arange(batch_size) if places is None else np.asarray(places)

    def read(batch):
        return _stack([rows.row(int(epoch), int(index)) for epoch, index in batch[own]])

    # As good as endless; Grain counts batches in floating point, and sys.maxsize rows are too many.
    epochs = max(_MOST_ROWS // count, 1)
    dataset = grain.MapDataset.range(count).shuffle(seed=seed).repeat(epochs)
    dataset = dataset.map_with_index(lambda i, row: np.array([i // count, row]))
    dataset = dataset.batch(batch_size).map(read)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)))


def evaluation_batches(
    rows: Rows,
    batch_size: int,
    num_batches: int,
    places: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yields fixed batches [B, T] of rows spread evenly over the first epoch.

    Where there are fewer rows than asked for, rows repeat with their mask at 0. With `places`, only
    those rows of each batch are read.
    """
    own = np.arange(batch_size) if places is None else np.asarray(places)
    chosen = np.linspace(0, len(rows) - 1, batch_size * num_batches).astype(int)
    new = np.diff(chosen, prepend=-1) > 0
    for first in range(0, len(chosen), batch_size):
        batch = []
        for place in first + own:
            row = rows.row(0, int(chosen[place]))
            batch.append(row | {"mask": row["mask"] * new[place]})
        yield _stack(batch)


def _stack(rows: list[Batch]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
