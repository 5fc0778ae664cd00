"""Locks between processes: whoever writes something long holds a small file that says so.

The file is locked by the system (`flock`, or `msvcrt` on Windows), which lets go of it when its
process ends, however that ends. Where the file system has no such locks, the file's existence is the
lock, and one whose process is gone is taken over.
"""

import contextlib
import errno
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
# Windows keeps others from reading the bytes that are locked, so they are far behind the text.
_FAR = 2**30
_PAUSE = 0.1
_SILENT = 2.0

_held: dict[tuple[int, str], "Lock"] = {}
_guard = threading.Lock()


class InUseError(OSError):
    """Another process holds what is asked for; one line says which one, where and since when."""


class Lock:
    """A lock on `what`, kept in `file`; a context manager.

    The thread that holds it may take it again; it is free when each has let go of it.
    """

    def __init__(self, file: Path, what: str):
        self._file, self._what = Path(file), what
        self._key = ""
        self._descriptor: int | None = None
        self._thread, self._count = 0, 0
        self._taken = 0  # by this object, while the count is of all objects for the file

    def acquire(self, wait: float = 0.0) -> None:
        """Takes the lock.

        Args:
          wait: Seconds to wait for whoever holds it. A line on standard error says so.

        Raises:
          InUseError: it is not free.
          OSError: the file cannot be made.
        """
        self._key = os.path.realpath(self._file)
        begin, told = time.monotonic(), False
        while True:
            with _guard:
                holder = _held.get((os.getpid(), self._key))
                if holder is not None and holder._thread == threading.get_ident():
                    holder._count += 1
                    self._taken += 1
                    return
                if holder is None and self._take():
                    self._thread, self._count = threading.get_ident(), 1
                    self._taken += 1
                    _held[os.getpid(), self._key] = self
                    return
            waited = time.monotonic() - begin
            if waited >= wait:
                raise InUseError(self._in_use())
            if not told and waited > _SILENT:
                print(f"[waiting: {self._in_use()}]", file=sys.stderr, flush=True)
                told = True
            time.sleep(_PAUSE)

    def release(self) -> None:
        """Lets go of the lock; nothing happens where it is not held."""
        with _guard:
            holder = _held.get((os.getpid(), self._key))
            if holder is None or not self._taken:
                return
            self._taken -= 1
            holder._count -= 1
            if holder._count == 0:
                del _held[os.getpid(), self._key]
                holder._drop()

    @contextlib.contextmanager
    def waiting(self, wait: float = math.inf) -> Iterator[None]:
        """Holds the lock for a block, once it is free; see `acquire`."""
        self.acquire(wait)
        try:
            yield
        finally:
            self.release()

    def __enter__(self) -> "Lock":
        self.acquire()
        return self

    def __exit__(self, *exception) -> None:
        self.release()

    def _take(self) -> bool:
        while True:
            try:
                descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
            except PermissionError:
                if not self._file.exists():
                    raise
                raise InUseError(
                    f"{self._what} is another user's, as {self._file} is; remove that if nobody is at it"
                ) from None
            try:
                locked = _lock(descriptor)
                if locked is False:
                    return False
                # Without locks of the system, the file is one while its process lives.
                if locked is None and _alive(_read_owner(self._file.read_bytes())):
                    return False
                # Whoever held it may have removed the file that was opened here.
                if not _is_file(descriptor, self._file):
                    continue
                owner = _owner()
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                os.write(descriptor, json.dumps(owner).encode())
                if locked is None:  # another process may have found it free at the same time
                    time.sleep(_PAUSE)
                    if _read_owner(self._file.read_bytes()) != owner:
                        return False
                self._descriptor, descriptor = descriptor, None
                return True
            finally:
                if descriptor is not None:
                    os.close(descriptor)

    def _drop(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        try:
            if _is_file(descriptor, self._file) and os.name != "nt":
                os.unlink(self._file)
        except OSError:
            pass  # an empty lock file does no harm
        finally:
            os.close(descriptor)  # which unlocks it

    def _in_use(self) -> str:
        try:
            owner = _read_owner(self._file.read_bytes())
        except OSError:
            owner = None
        if owner is None:
            return f"{self._what} is in use by another process"
        line = f"{self._what} is in use by process {owner['pid']}"
        if owner["pid"] == os.getpid() and owner["host"] == _host():
            line += " (this one)"
        line += f" on {owner['host']} since {owner['since']}"
        if owner["host"] != _host():
            line += f"; if that process is gone, remove {self._file}"
        return line


def _lock(descriptor: int) -> bool | None:
    """Returns whether the file is locked now; None where the file system knows no locks."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(descriptor, _FAR, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if fcntl is not None and error.errno in _UNSUPPORTED:
            return None
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True


def _is_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def _owner() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": _host(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "started": _started(os.getpid()),
    }


def _read_owner(data: bytes) -> dict[str, Any] | None:
    try:
        owner = json.loads(data)
        return {name: owner[name] for name in ("pid", "host", "since", "started")}
    except (ValueError, KeyError, TypeError):
        return None


def _alive(owner: dict[str, Any] | None) -> bool:
    """Returns whether a process runs; one on another host may."""
    if owner is None:
        return False
    if owner["host"] != _host():
        return True
    if owner["started"] is not None:  # the same number may be another process by now
        return _started(owner["pid"]) == owner["started"]
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _started(pid: int) -> str | None:
    """Returns when a process began, as Linux has it; None where that is not told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return fields.rpartition(")")[2].split()[19]


def _host() -> str:
    return socket.gethostname()
