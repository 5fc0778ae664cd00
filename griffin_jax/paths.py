"""Paths that users give: what they mean, and whether they can be written."""

import errno
import os
import re
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

AnyPath = str | bytes | os.PathLike

STANDARD_INPUT = "-"

_STREAM = re.compile(r"/dev/(?:stdin|stdout|stderr)|/(?:dev|proc/(?:self|\d+))/fd/(\d+)")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_STREAM_NUMBERS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}


class OutputError(OSError):
    """A file or folder cannot be written; one line names it as the user did and says why."""

    def __init__(self, path: AnyPath, reason: str, number: int | None = None):
        super().__init__(number, reason, str(path))

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}"


def resolve(path: AnyPath, name: str = "path") -> Path:
    """Returns the absolute path that a user means: `~` and `~user` are home folders, the rest is as
    it is.

    Called where a path enters, so that a later change of the working folder does not matter.

    Args:
      path: Text, bytes or a path.
      name: What messages call it, such as "--output".

    Raises:
      ValueError: it is empty, holds a NUL character, is an address or no path at all, or names the
        home folder of nobody.
      FileNotFoundError: it is relative, and the working folder is gone.
    """
    if not isinstance(path, AnyPath):
        raise ValueError(f"{name} must be a path, got {path!r}")
    text = os.fsdecode(path)
    if not text.strip():
        raise ValueError(f"{name} is empty; give a path")
    if "\0" in text:
        raise ValueError(f"{name} {text!r} holds a NUL character, which no path does")
    if _ADDRESS.match(text):
        raise ValueError(f"{name} {text} is an address; give a path of this machine")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError(f"{name} {text!r} holds a character that no path does") from None
    if text.startswith("~"):
        text = _at_home(text, name)
    try:
        return Path(text).absolute()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{name} {text}: the working folder is gone, so a relative path leads nowhere; give an "
            "absolute one"
        ) from None


def _at_home(text: str, name: str) -> str:
    first = Path(text).parts[0]
    expanded = os.path.expanduser(text)
    if first == "~":
        # An empty HOME would make it a path from the root.
        if expanded.startswith("~") or os.environ.get("HOME") == "":
            raise ValueError(
                f"{name} {text}: there is no home folder (HOME is not set); give an absolute path"
            )
        return expanded
    if expanded.startswith("~") and not os.path.lexists(first):
        raise ValueError(
            f"{name} {text}: there is no user {first[1:]!r}; for a file or folder of this name, give "
            "its absolute path"
        )
    return expanded


def check_file(path: AnyPath, name: str = "output", inputs: Sequence[AnyPath] = ()) -> Path:
    """Raises as `files.new_file` would, before any work is done; returns the resolved path.

    Args:
      path: What is to be written.
      name: What messages call it, such as "--output".
      inputs: Files that are read, none of which it may be; "-" is standard input.

    Raises:
      OutputError: it cannot be written.
      ValueError: it is no path, or one of the inputs.
    """
    given = output_file(path, name, inputs)
    if stream_number(given) is None and not (is_special(given) or stays(given)):
        check_place(Path(os.path.realpath(given)).parent, given)
    return given


def output_file(path: AnyPath, name: str = "output", inputs: Sequence[AnyPath] = ()) -> Path:
    """Returns the resolved path of a file to write, as `check_file` has it, without trying to
    write.
    """
    given = resolve(path, name)
    try:
        mode = given.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = 0
    except OSError as error:
        raise OutputError(given, error.strerror or str(error), error.errno) from error
    if os.fsdecode(path).endswith(("/", os.sep)) or stat.S_ISDIR(mode):
        raise OutputError(given, "it is a folder; give a file's name", errno.EISDIR)
    for other in inputs:
        if _is_read(given, other):
            raise ValueError(f"{name} {given} is read as well, and would be overwritten")
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        kind = "disk" if stat.S_ISBLK(mode) else "socket"
        raise OutputError(given, f"it is a {kind}; give a file's name", errno.EINVAL)
    if mode and not os.access(given, os.W_OK):
        raise OutputError(given, "it is read-only", errno.EACCES)
    return given


def check_folder(path: AnyPath, name: str = "output") -> Path:
    """Raises as `files.new_folder` would, before any work is done; returns the resolved path.

    Raises:
      OutputError: it is there already, or cannot be made.
      ValueError: it is no path.
    """
    given = resolve(path, name)
    target = Path(os.path.realpath(given))
    refuse_full(target, given)
    check_place(target if stays(target) else target.parent, given)
    return given


def check_inside(path: AnyPath, name: str = "output") -> Path:
    """Raises unless files can be written into a folder, or it can be made; returns the resolved path.

    Raises:
      OutputError: it cannot be made or written into.
      ValueError: it is no path.
    """
    given = resolve(path, name)
    check_place(given, given)
    return given


def make_folder(path: AnyPath, name: str = "output") -> Path:
    """Makes a folder to write files into, with those above it, unless it is there; the resolved path.

    Raises:
      OutputError: it cannot be made or written into.
      ValueError: it is no path.
    """
    given = check_inside(path, name)
    try:
        given.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(given, error.strerror or str(error), error.errno) from error
    return given


def check_place(folder: Path, given: Path) -> None:
    """Raises unless files can be made in a folder, or in the nearest one above that is there.

    Raises:
      OutputError: they cannot; `given` is what it calls the output.
    """
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        kind = "a broken link" if not folder.exists() else "a file"
        raise OutputError(given, f"{folder} is {kind} and no folder", errno.ENOTDIR)
    try:
        descriptor, probe = tempfile.mkstemp(dir=folder, prefix=".griffin_jax.")
    except OSError as error:
        reason = f"{folder} takes no new file ({error.strerror})"
        raise OutputError(given, reason, error.errno) from error
    os.close(descriptor)
    os.unlink(probe)


def refuse_full(target: Path, given: Path, besides: str | None = None) -> None:
    """Raises unless there is nothing at `target`, or a folder with nothing in it.

    Args:
      target: What is looked at.
      given: What messages call it.
      besides: Names that begin so do not count.

    Raises:
      OutputError: there is something.
    """
    if not os.path.lexists(target):
        return
    if target.is_dir():
        names = [entry.name for entry in os.scandir(target)]
        if all(besides is not None and name.startswith(besides) for name in names):
            return
    raise OutputError(given, "it exists already; choose another output or remove it", errno.EEXIST)


def stays(target: Path) -> bool:
    """Returns whether a file or folder is there and may be written, and not be replaced by another.

    So it is with what a container mounts, and in a folder that is not one's own.
    """
    return os.path.exists(target) and (
        os.path.ismount(target)
        or not os.access(Path(os.path.realpath(target)).parent, os.W_OK | os.X_OK)
    )


def is_special(path: Path) -> bool:
    """Returns whether a path is a device or a pipe, which is written into."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def stream_number(path: Path) -> int | None:
    """Returns which of this process's open files a path such as /dev/stdout stands for."""
    text = str(path)
    found = _STREAM.fullmatch(text)
    if found is None:
        return None
    if text.startswith("/proc/") and text.split("/")[2] not in ("self", str(os.getpid())):
        return None
    return _STREAM_NUMBERS[text] if found[1] is None else int(found[1])


def _is_read(output: Path, given: AnyPath) -> bool:
    try:
        there = output.stat()
        here = os.fstat(0) if os.fsdecode(given) == STANDARD_INPUT else resolve(given).stat()
    except OSError:
        return False
    return stat.S_ISREG(there.st_mode) and os.path.samestat(here, there)
