"""A server in a thread of the tests' own process, on a free port."""

import contextlib
import threading
import time
from collections.abc import Iterator

import httpx

from griffin_jax.language_model import LanguageModel
from griffin_jax.serving.server import Server, bind, make_server
from griffin_jax.serving.service import READY, Service
from griffin_jax.serving.settings import ServerSettings


class Running:
    """A server that listens.

    Attributes:
      url: Where.
      service: What it serves.
      server: Itself.
    """

    def __init__(self, url: str, server: Server):
        self.url, self.server = url, server
        self.service: Service = server.service

    def client(self, **options) -> httpx.Client:
        """A client of it."""
        return httpx.Client(**{"base_url": self.url, "timeout": 120} | options)


@contextlib.contextmanager
def running(lm: LanguageModel, keys: frozenset[str] = frozenset(), **settings) -> Iterator[Running]:
    """A server of a model, ready, until the block ends."""
    given = ServerSettings(**{"port": 0, "compile_sampling": False, "name": "tiny"} | settings)
    with bind(given) as listener:
        server = make_server(lm, given, "model", keys)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        found = Running(f"http://127.0.0.1:{listener.getsockname()[1]}", server)
        try:
            until = time.monotonic() + 300
            while found.service.state != READY:
                assert thread.is_alive(), "the server has ended"
                assert time.monotonic() < until, "the server does not get ready"
                time.sleep(0.01)
            yield found
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive(), "the server does not end"
