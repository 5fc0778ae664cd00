"""Files and folders that appear complete or not at all.

A new file or folder is made under a temporary name beside its target, `.NAME.MARK.partial`, and takes
the target's name when it is complete. While it is made, a lock `.NAME.lock` says who makes it, so what
a killed process has left is known as such: the next one that makes the same target removes it.
"""

import atexit
import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from griffin_jax import paths
from griffin_jax.locks import InUseError, Lock
from griffin_jax.paths import AnyPath, OutputError

# Processes write the same small file one after the other; what takes longer than this hangs.
_WAIT = 60.0
_LONGEST_NAME = 255
# Kept in memory until a device takes it; the rest waits on disk.
_SPOOLED = 2**24
# What is wrong with a file that is being written, where the error does not name one.
_OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_OF_WRITING |= {errno.EPIPE, errno.EBADF, errno.ENXIO}
_BINARY = getattr(os, "O_BINARY", 0)  # of Windows
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def new_file(path: AnyPath, inputs: Sequence[AnyPath] = ()) -> Iterator[BinaryIO]:
    """Yields a file to write, which takes the place of `path` when the block ends well.

    Symbolic links are followed, and a device, a pipe or a file that cannot be replaced is written
    into, once the block has ended well. A file that is replaced keeps its permissions. Folders above
    it are made. When the block raises, nothing is left.

    Args:
      path: What is to be written.
      inputs: Files that are read, none of which it may be; "-" is standard input.

    Raises:
      OutputError: it cannot be written; the path is named as it was given.
      ValueError: it is no path, or one of the inputs.
    """
    given = paths.output_file(path, inputs=inputs)
    target = Path(os.path.realpath(given))
    number = paths.stream_number(given)
    with _naming(given, target), _ending_in_order():
        if number is not None or paths.is_special(given) or paths.stays(given):
            with tempfile.SpooledTemporaryFile(_SPOOLED) as spool:
                yield cast(BinaryIO, spool)
                spool.seek(0)
                _write_into(given, number, spool)
            return
        with _made(target.parent), _alone(target.parent, target.name, given, _WAIT):
            partial = target.parent / partial_name(target.name)
            try:
                descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
                with os.fdopen(descriptor, "w+b") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                _keep_owner(target, partial)
                _replace(partial, target)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            _sync(target.parent)


def claim(path: AnyPath) -> None:
    """Holds the lock of a file until the process ends, while the work that fills it is under way.

    This thread may write it with `new_file` meanwhile.

    Raises:
      InUseError: another process holds it.
    """
    given = paths.output_file(path)
    target = Path(os.path.realpath(given))
    written_into = paths.stream_number(given) is not None or paths.is_special(given)
    if written_into or paths.stays(given) or not target.parent.is_dir():
        return
    lock = Lock(target.parent / f"{_prefix(target.name)}lock", str(given))
    lock.acquire()
    atexit.register(lock.release)
    _end_in_order()  # which calls that


def write_text(path: AnyPath, text: str, inputs: Sequence[AnyPath] = ()) -> None:
    """Writes a file of UTF-8 text; see `new_file`."""
    data = text.encode()
    with new_file(path, inputs) as file:
        file.write(data)


def write_json(path: AnyPath, value: Any, **options: Any) -> None:
    """Writes a value as JSON and a newline; `options` are those of `json.dumps`. See `new_file`."""
    write_text(path, json.dumps(value, **{"indent": 2} | options) + "\n")


@contextlib.contextmanager
def new_folder(path: AnyPath, *, replace: bool = False, mark: str | None = None) -> Iterator[Path]:
    """Yields a folder to fill, which takes `path`'s name when the block ends well.

    When the block raises, nothing is left. An empty folder that has to stay, as one that a container
    mounts, is filled at the end.

    Args:
      path: What to make: nothing or an empty folder, unless `replace`.
      replace: Take the place of a folder that is there.
      mark: Part of the temporary name, where other processes fill the folder, too.

    Raises:
      OutputError: something is there already, or it cannot be made.
      InUseError: another process makes it.
      ValueError: it is no path.
    """
    given = paths.resolve(path)
    target = Path(os.path.realpath(given))
    besides = _prefix(target.name)
    place = target if paths.stays(target) else target.parent
    # Where there are several processes, JAX watches the signals.
    ending = _ending_in_order() if mark is None else contextlib.nullcontext()
    with _naming(given, target), ending:
        if not replace:
            paths.refuse_full(target, given, besides)
        with _made(place), _alone(place, target.name, given, 0.0):
            _finish_replacing(target)
            partial = place / partial_name(target.name, mark)
            try:
                partial.mkdir()
                yield partial
                _sync_tree(partial)
                if place == target:
                    _move_into(target, partial, besides)
                else:
                    if not replace:  # another program may have made it meanwhile
                        paths.refuse_full(target, given)
                    elif target.exists():
                        target.rename(_replaced(target))
                    partial.replace(target)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            finally:
                _finish_replacing(target)
            _sync(place)


def staged_folder_of(path: AnyPath, mark: str) -> Path:
    """Returns where `new_folder` with this mark is filled, for processes that did not call it."""
    target = Path(os.path.realpath(paths.resolve(path)))
    place = target if paths.stays(target) else target.parent
    return place / partial_name(target.name, mark)


def partial_name(name: str, mark: str | None = None) -> str:
    """Returns the temporary name of a file or folder that is being made."""
    return f"{_prefix(name)}{mark or uuid.uuid4().hex[:8]}.partial"


def _prefix(name: str) -> str:
    prefix = f".{name}."
    if len(os.fsencode(prefix)) + len("12345678.partial") > _LONGEST_NAME:
        prefix = f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}."
    return prefix


@contextlib.contextmanager
def _alone(place: Path, name: str, given: Path, wait: float) -> Iterator[None]:
    """Holds the lock of a target, and removes what killed processes have left of it."""
    with Lock(place / f"{_prefix(name)}lock", str(given)).waiting(wait):
        left = re.compile(re.escape(_prefix(name)) + r"(?:[0-9a-f]{8}|all)\.partial")
        for entry in list(os.scandir(place)):
            if left.fullmatch(entry.name):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)
        yield


def _replaced(target: Path) -> Path:
    return target.parent / f"{_prefix(target.name)}replaced"


def _finish_replacing(target: Path) -> None:
    """Ends or undoes a replacement that stopped between its two renames."""
    old = _replaced(target)
    if old.is_dir():
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)


def _move_into(target: Path, partial: Path, besides: str) -> None:
    """Moves what is in `partial` up into `target`, in place of what is there."""
    for entry in list(os.scandir(target)):
        if not entry.name.startswith(besides):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
    for entry in list(os.scandir(partial)):
        os.rename(entry.path, target / entry.name)
    partial.rmdir()


def _write_into(given: Path, number: int | None, source: Any) -> None:
    """Writes into an open file of this process, by its number, or into what cannot be replaced."""
    if number is None:
        descriptor = os.open(given, os.O_WRONLY | os.O_TRUNC | _BINARY)
    else:
        if number == 1 and sys.stdout is None:  # another file may have its number by now
            raise OSError(errno.EBADF, "standard output is closed")
        for stream in (sys.stdout, sys.stderr):  # what was printed before comes before
            if stream is not None:
                stream.flush()
        descriptor = os.dup(number)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        _copy(source, file)


def _copy(source: Any, file: io.RawIOBase) -> None:
    while piece := source.read(2**20):
        while piece:
            piece = piece[file.write(piece) :]


def _replace(partial: Path, target: Path) -> None:
    try:
        partial.replace(target)
    except OSError as error:
        # A file that a container mounts can be written, and not be replaced.
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        with partial.open("rb") as source, target.open("wb", buffering=0) as file:
            _copy(source, file)
            os.fsync(file.fileno())
        partial.unlink()


def _keep_owner(target: Path, partial: Path) -> None:
    """Gives a file the owner and the permissions of the one whose place it takes."""
    try:
        before = target.stat()
    except FileNotFoundError:
        return
    if hasattr(os, "chown") and (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
        with contextlib.suppress(OSError):
            os.chown(partial, before.st_uid, before.st_gid)
    partial.chmod(stat.S_IMODE(before.st_mode))


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder and those above it; when the block raises, those of them that are empty go."""
    missing = []
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = folder.parent
    try:
        for one in reversed(missing):
            one.mkdir(exist_ok=True)
        yield
    except BaseException:
        for one in missing:
            with contextlib.suppress(OSError):
                one.rmdir()
        raise


@contextlib.contextmanager
def naming_errors(path: AnyPath) -> Iterator[None]:
    """Raises what goes wrong with files in a folder as an `OutputError` of it.

    Other libraries name a temporary file, or nothing, where the disk is full.
    """
    given = paths.resolve(path)
    with _naming(given, Path(os.path.realpath(given))):
        yield


@contextlib.contextmanager
def _naming(given: Path, target: Path) -> Iterator[None]:
    """Raises what goes wrong with the target's own files as an `OutputError` of the user's path.

    Errors of other files, which the block may read, pass.
    """
    try:
        yield
    except (OutputError, InUseError):
        raise
    except OSError as error:
        if error.filename is None:
            own = error.errno in _OF_WRITING
        else:
            own = _is_own(Path(os.fsdecode(error.filename)), given, target)
        if not own:
            raise
        raise OutputError(given, error.strerror or str(error), error.errno) from error
    except Exception as error:
        if full := _disk_full(error):
            raise OutputError(given, os.strerror(full), full) from error
        raise


def _is_own(path: Path, given: Path, target: Path) -> bool:
    """Returns whether a path is that of a target, above it, in it, or one of its temporary
    names.
    """
    prefix = _prefix(target.name)
    for here in (given, target):
        if path == here or path in here.parents or here in path.parents:
            return True
        if any(one.name.startswith(prefix) for one in (path, *path.parents)):
            return True
    return False


def _disk_full(error: BaseException | None) -> int | None:
    """Returns the system's number of a full disk, where another library's error goes back to
    one.
    """
    while error is not None:
        for number in (errno.ENOSPC, errno.EDQUOT):
            if os.strerror(number).lower() in str(error).lower():
                return number
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP raise SystemExit where they would end the process on the spot."""

    changed = _end_in_order()
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _end_in_order() -> list[int]:
    def end(number, frame):
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        return []
    changed = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, end)
    return changed


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    """Brings a file, or a folder's names, to the disk where the system does that."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
