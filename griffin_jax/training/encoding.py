"""Documents to tokens, on all cores where there are enough of them.

Other processes are started only for what would keep one core busy for longer than they take to start.
They run `encoding_worker.py`, not the caller's program: a script needs no `if __name__ ==
"__main__":`, and may be read from standard input or typed at a prompt.
"""

import collections
import concurrent.futures
import contextlib
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from griffin_jax.progress import Bar

# UTF-8 bytes that are encoded right here, in a few seconds; other processes take as long to start.
_ALONE = 2**23
_WORKER = Path(__file__).with_name("encoding_worker.py")


class Encoder(Protocol):
    """A tokenizer, as far as texts are encoded with it."""

    def encode(self, text: str, bos: bool = True) -> list[int]: ...


class DocumentEncoder(Encoder, Protocol):
    """An encoder of documents, which EOS ends; to be used on several cores, it must survive pickling."""

    eos_id: int


def available_cores() -> int:
    """Returns how many cores this process may use, on any platform."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def encode_all(
    documents: Iterable[str], tokenizer: DocumentEncoder, *, alone: int = _ALONE
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields tokens, BOS ... EOS, and UTF-8 bytes of each document, in order.

    Args:
      documents: The texts.
      tokenizer: Encodes them.
      alone: Bytes that are encoded in this process before others are started.

    Raises:
      ValueError: the tokenizer refuses a document.
      RuntimeError: another process that encodes has ended.
    """
    documents = iter(documents)
    with Bar(desc="tokenizing", unit="B", unit_scale=True) as progress:
        done = 0
        cores = available_cores()
        while cores == 1 or done < alone:
            document = next(documents, None)
            if document is None:
                return
            size = len(document.encode())
            yield _tokens(tokenizer, document), size
            done += size
            progress.update(size)
        with contextlib.closing(_encode_apart(documents, tokenizer, cores)) as found:
            for tokens, size in found:
                yield tokens, size
                progress.update(size)


def _tokens(tokenizer, document):
    return np.asarray([*tokenizer.encode(document, bos=True), tokenizer.eos_id])


def _encode_apart(documents, tokenizer, count):
    """Runs `encode_all` in `count` other processes; here where they cannot have the tokenizer."""
    with contextlib.ExitStack() as stack:
        workers = queue.SimpleQueue()
        try:
            pickled = pickle.dumps(tokenizer)
            started = [stack.enter_context(_Worker()) for _ in range(count)]
            for worker in started:
                worker.begin(pickled)
                workers.put(worker)
        except (OSError, pickle.PicklingError, AttributeError, TypeError, _CannotEncode):
            for document in documents:
                yield _tokens(tokenizer, document), len(document.encode())
            return
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(count))

        def encode(document):
            worker = workers.get()
            try:
                return worker.encode(document), len(document.encode())
            finally:
                workers.put(worker)

        pending = collections.deque()
        try:
            for document in documents:
                pending.append(pool.submit(encode, document))
                if len(pending) > 4 * count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class _CannotEncode(Exception):
    """A process does not get the tokenizer: it is a class of the caller's script, for example."""


class _Worker:
    """A process that encodes one document at a time."""

    def __enter__(self) -> "_Worker":
        if not sys.executable:
            raise OSError("no interpreter to start")
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C at a terminal is for the caller, who closes the pipes.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        return self

    def __exit__(self, *exception) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.kill()
        self._process.wait()

    def begin(self, tokenizer: bytes) -> None:
        """Hands over the tokenizer. Raises _CannotEncode where it does not arrive."""
        try:
            self._send((sys.path, tokenizer))
            ready, _ = self._receive()
        except (OSError, EOFError, RuntimeError) as error:
            raise _CannotEncode from error
        if not ready:
            raise _CannotEncode

    def encode(self, document: str) -> np.ndarray:
        try:
            self._send(document)
            good, found = self._receive()
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise RuntimeError(
                "a process that tokenizes has ended; memory may have run out"
            ) from error
        if not good:
            raise ValueError(found)
        return found

    def _send(self, value):
        pickle.dump(value, self._process.stdin)
        self._process.stdin.flush()

    def _receive(self):
        return pickle.load(self._process.stdout)
