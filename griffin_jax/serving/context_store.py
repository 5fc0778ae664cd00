"""Contexts that clients have had read or have sent: files in a folder, and those in use on the device."""

import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import logging
import os
import re
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool

from griffin_jax import paths
from griffin_jax.errors import CheckpointError
from griffin_jax.inference import Context
from griffin_jax.inference.row_states import nbytes
from griffin_jax.language_model import LanguageModel
from griffin_jax.serving.errors import invalid, not_stored, too_large, unknown_context
from griffin_jax.serving.settings import ServerSettings

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SUFFIX = ".safetensors"


@dataclasses.dataclass(frozen=True)
class Kept:
    """A context that is kept.

    Attributes:
      name: What clients call it.
      path: Its file.
      nbytes: What that takes.
    """

    name: str
    path: Path
    nbytes: int


class ContextStore:
    """The contexts of all clients; a client sees its own. Of the event loop.

    The files are what there is: a server that is started again finds them. Those that are in use lie
    on the device as well, the most recently used ones.
    """

    def __init__(self, lm: LanguageModel, settings: ServerSettings):
        """Opens the folder, or makes it.

        Raises:
          OSError: it cannot be made, or written into.
        """
        self._lm = lm
        self._most_bytes = settings.context_bytes
        self._most_on_device = settings.context_device_bytes
        self._on_device: collections.OrderedDict[Path, Context] = collections.OrderedDict()
        self._lock = asyncio.Lock()
        if settings.contexts is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="griffin_jax-contexts-")
            self._folder = Path(self._temporary.name)
        else:
            self._temporary = None
            self._folder = paths.make_folder(paths.resolve(settings.contexts, "contexts"))
            if not os.access(self._folder, os.W_OK):
                raise PermissionError(f"contexts={self._folder}: the folder cannot be written into")
            for left in self._folder.glob("*/.*.partial"):  # of a process that was killed
                left.unlink(missing_ok=True)

    def close(self) -> None:
        """Removes what goes with the process."""
        self._on_device.clear()
        if self._temporary is not None:
            self._temporary.cleanup()

    def listed(self, owner: str) -> list[Kept]:
        """Returns the contexts of a client, by name."""
        folder = self._folder / owner
        if not folder.is_dir():
            return []
        kept = []
        for path in sorted(folder.glob(f"*{_SUFFIX}")):
            with contextlib.suppress(FileNotFoundError):
                if not path.name.startswith("."):
                    kept.append(Kept(path.name.removesuffix(_SUFFIX), path, path.stat().st_size))
        return kept

    def find(self, owner: str, name: str) -> Kept:
        """Returns a context of a client.

        Raises:
          RequestError: there is none of this name.
        """
        if NAME.fullmatch(name):
            path = self._path(owner, name)
            if path.is_file():
                return Kept(name, path, path.stat().st_size)
        raise unknown_context(name)

    async def get(self, owner: str, name: str) -> Context:
        """Returns a context of a client, on the device.

        Raises:
          RequestError: there is none of this name, or its file has been damaged.
        """
        path = self.find(owner, name).path
        async with self._lock:  # so that many who ask at once have it loaded once
            if path in self._on_device:
                self._on_device.move_to_end(path)
                return self._on_device[path]
            try:
                context = await run_in_threadpool(self._load, path)
            except FileNotFoundError:  # it was deleted since
                raise unknown_context(name) from None
            self._keep(path, context)
        return context

    async def save(self, owner: str, context: Context) -> Kept:
        """Keeps a context under a new name.

        Raises:
          RequestError: the client has no room for it, or the disk has none.
        """
        name = f"ctx-{uuid.uuid4().hex}"
        path = self._path(owner, name)
        async with self._lock:  # the room of a client is given to one at a time
            self._check_room(owner, nbytes(context.state))
            with _storing():
                await run_in_threadpool(path.parent.mkdir, exist_ok=True)
                await run_in_threadpool(self._lm.save_context, context, path)
            self._keep(path, context)
            return self.find(owner, name)

    async def put(
        self, owner: str, name: str, pieces: AsyncIterator[bytes]
    ) -> tuple[Kept, Context]:
        """Takes a file that `save` wrote, here or elsewhere.

        Raises:
          RequestError: it is no context of this model, or there is no room for it.
        """
        if not NAME.fullmatch(name):
            raise invalid(
                f"a context's name is up to 64 letters, digits, - and _, got {name!r:.100}",
                "context",
            )
        path = self._path(owner, name)
        partial = path.with_name(f".{uuid.uuid4().hex}.partial")
        with _storing():
            await run_in_threadpool(path.parent.mkdir, exist_ok=True)
        try:
            with _storing(), await run_in_threadpool(partial.open, "wb") as file:
                async for piece in pieces:
                    await run_in_threadpool(file.write, piece)
            context = await run_in_threadpool(self._load, partial)
            async with self._lock:  # others may have taken the room meanwhile
                self._check_room(owner, partial.stat().st_size, besides=name)
                with _storing():
                    await run_in_threadpool(partial.replace, path)
                self._on_device.pop(path, None)
                self._keep(path, context)
                return self.find(owner, name), context
        finally:
            partial.unlink(missing_ok=True)

    def room(self, owner: str, besides: str | None = None) -> int:
        """Returns the bytes that a client may still keep, the context of one name not counted."""
        kept = sum(one.nbytes for one in self.listed(owner) if one.name != besides)
        return max(self._most_bytes - kept, 0)

    async def delete(self, owner: str, name: str) -> None:
        """Forgets a context.

        Raises:
          RequestError: there is none of this name.
        """
        async with self._lock:
            path = self.find(owner, name).path
            self._on_device.pop(path, None)
            await run_in_threadpool(path.unlink, missing_ok=True)

    def _check_room(self, owner: str, needed: int, besides: str | None = None) -> None:
        room = self.room(owner, besides)
        if needed > room:
            raise too_large(
                f"a context takes {needed:,} bytes, and {room:,} of {self._most_bytes:,} are left to "
                "this key; delete another one",
                "context_bytes",
            )

    def _path(self, owner: str, name: str) -> Path:
        return self._folder / owner / f"{name}{_SUFFIX}"

    def _load(self, path: Path) -> Context:
        try:
            return self._lm.load_context(path)
        except CheckpointError as error:
            message = (
                str(error).replace(f"{path.parent}{os.sep}", "").replace(path.name, "the file")
            )
            raise invalid(message, "context", "context_invalid") from None

    def _keep(self, path: Path, context: Context) -> None:
        self._on_device[path] = context
        self._on_device.move_to_end(path)
        sizes = {path: nbytes(one.state) for path, one in self._on_device.items()}
        total = sum(sizes.values())
        for oldest, size in sizes.items():
            if total <= self._most_on_device or len(self._on_device) == 1:
                break
            del self._on_device[oldest]
            total -= size


@contextlib.contextmanager
def _storing():
    """Tells a client where the disk is full, or cannot be written for another reason."""
    try:
        yield
    except OSError as error:
        log.exception("a context cannot be stored")
        why = os.strerror(error.errno) if error.errno else type(error).__name__
        raise not_stored(f"the server cannot store the context: {why}") from error


def owner_of_key(key: str | None) -> str:
    """Returns a digest of an API key, under which its contexts are kept."""
    return hashlib.sha256((key or "").encode()).hexdigest()[:16]


def facts(kept: Kept, context: Context | None = None) -> dict[str, Any]:
    """Returns what a client is told of a context."""
    told: dict[str, Any] = {"id": kept.name, "object": "context", "bytes": kept.nbytes}
    if context is not None:
        told |= {"tokens": len(context.tokens), "state_bytes": nbytes(context.state)}
    return told
