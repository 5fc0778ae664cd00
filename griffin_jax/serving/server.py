"""A server that listens, until it is told to end."""

import asyncio
import logging
import math
import signal
import socket
import sys
from types import FrameType

import uvicorn

from griffin_jax.language_model import LanguageModel
from griffin_jax.serving.app import make_app
from griffin_jax.serving.records import log_to_stderr
from griffin_jax.serving.service import Service
from griffin_jax.serving.settings import ServerSettings, read_keys

log = logging.getLogger(__name__)

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Server(uvicorn.Server):
    """uvicorn's, which drains at the first SIGTERM or SIGINT and ends at the second.

    Attributes:
      service: What it serves.
    """

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service = service
        self._draining: asyncio.Task | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes a signal."""
        try:
            asyncio.get_running_loop().call_soon_threadsafe(self.end, signal.Signals(sig).name)
        except RuntimeError:  # before the loop runs, or after it
            self.should_exit = True

    def end(self, why: str) -> None:
        """Begins to drain; a second time, ends at once. Of the event loop."""
        if self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        log.info("ending", extra={"fields": {"why": why}})
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        left = await self.service.drain(self.service.settings.drain_seconds)
        if left:
            log.warning("texts are cut off", extra={"fields": {"open_texts": left}})
        self.should_exit = True


def bind(settings: ServerSettings) -> socket.socket:
    """Returns a socket that listens where the settings say.

    Raises:
      ValueError: the address is none of this machine, or something listens there already.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections have it from the listener
            milliseconds = math.ceil(1000 * settings.unread_seconds)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        where = f"host={settings.host} port={settings.port}"
        raise ValueError(f"{where}: {error.strerror or error}; give another one") from None
    return listener


def make_server(
    lm: LanguageModel, settings: ServerSettings, name: str, keys: frozenset[str] | None = None
) -> Server:
    """Returns a server of a model, which does not listen yet.

    Args:
      lm: The model.
      settings: The server's.
      name: What clients call the model where the settings do not say.
      keys: The API keys; None for those that the settings name.

    Raises:
      ValueError: a setting does not fit.
      OSError: a file or folder cannot be used.
    """
    keys = read_keys(settings) if keys is None else keys
    service = Service(lm, settings, name, keys)
    config = uvicorn.Config(
        make_app(service),
        log_config=None,
        access_log=False,
        ws="none",  # nor is there a package for it to load
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
    )
    return Server(config, service)


def serve(server: Server, listener: socket.socket) -> None:
    """Serves until a signal ends it; says where on standard error, and logs there."""
    log_to_stderr()
    host, port = listener.getsockname()[:2]
    service = server.service
    shown = f"[{host}]" if ":" in host else host
    reach = "this machine alone" if host in _LOOPBACK else "whoever reaches this address"
    key = "an API key is asked for" if service.keys else "no API key is asked for"
    print(f"[http://{shown}:{port} for {reach}; {key}]", file=sys.stderr, flush=True)
    server.run(sockets=[listener])
