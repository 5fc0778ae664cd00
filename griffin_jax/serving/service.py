"""The endpoints share this: the model, its worker, its contexts, and whether requests are taken."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from griffin_jax.inference import Context, PrefixCache
from griffin_jax.language_model import LanguageModel
from griffin_jax.serving import protocol
from griffin_jax.serving.context_store import ContextStore
from griffin_jax.serving.errors import unavailable
from griffin_jax.serving.grammar import Compiler
from griffin_jax.serving.keys import Keys
from griffin_jax.serving.metrics import Metrics
from griffin_jax.serving.records import Record
from griffin_jax.serving.settings import ServerSettings
from griffin_jax.serving.worker import Worker

log = logging.getLogger(__name__)

Body = TypeVar("Body", bound=protocol.Generation)
Asked = TypeVar("Asked")

STARTING, READY, DRAINING, FAILED = "starting", "ready", "draining", "failed"
_TELL_EVERY = 5.0  # seconds
# With fewer cores, a server is ready once the calls are compiled that read so few tokens.
_MANY_CORES, _AT_FIRST = 8, 32


class Service:
    """A model that is being served.

    Attributes:
      lm: The model.
      settings: The server's.
      name: What clients call the model.
      created: When it was loaded, in seconds since 1970.
      compiled: Whether all programs are there that are compiled ahead.
      state: "starting", "ready", "draining", or "failed" where compiling did.
      worker: Runs its engine.
      contexts: What clients have had it read.
      compiler: Makes token masks of grammars.
      metrics: What is counted.
    """

    def __init__(
        self, lm: LanguageModel, settings: ServerSettings, name: str, keys: frozenset[str]
    ):
        """Gets everything ready, but for the worker's thread.

        Raises:
          ValueError: the model has no tokenizer, or the device no memory for so many slots.
          OSError: the folder of contexts cannot be made.
        """
        if lm.tokenizer is None:
            raise ValueError("the model has no tokenizer; a server needs one")
        self.lm, self.settings = lm, settings
        self._keys = Keys(keys, settings)
        self.name = name if settings.name is None else settings.name
        self.created = int(time.time())
        self.state = STARTING
        self.compiled = False
        cache = None
        if settings.prefix_cache_bytes or settings.prefix_cache_host_bytes:
            cache = PrefixCache(
                settings.prefix_cache_bytes,
                host_bytes=settings.prefix_cache_host_bytes,
                exact=settings.prefix_cache_exact,
            )
        engine = lm.engine(slots=settings.slots, prefix_cache=cache)
        self.contexts = ContextStore(lm, settings)
        self.compiler = Compiler(lm.tokenizer, lm.config.vocab_size)
        self.metrics = Metrics(self.name, engine, cache)
        self.worker = Worker(
            engine,
            settings.slots + settings.waiting,
            self.metrics.count_tokens,
            self.metrics.count_end,
        )

    @property
    def keys(self) -> frozenset[str]:
        """The API keys that are known now; none where everybody may ask."""
        return self._keys.known()

    @property
    def fingerprint(self) -> str:
        """The mark of its weights, which tells them from others'."""
        return f"fp_{self.lm.fingerprint[:12]}"

    async def make_ready(self) -> None:
        """Compiles what requests will need, then takes them.

        The programs of as many texts as there are slots serve fewer, too. Those of fewer texts, which
        are faster, follow while requests are taken, and are used from then on. Where there are few
        cores to compile on, so do the longer calls, first of all: until then prompts are read in
        short ones.
        """
        begin = time.monotonic()
        slots, engine = self.settings.slots, self.worker.engine
        cores = os.cpu_count() or 1

        def took():
            return {"fields": {"seconds": round(time.monotonic() - begin, 3)}}

        try:
            await self._compile((slots,), longest=_AT_FIRST if cores < _MANY_CORES else None)
            # Whatever else a text needs.
            bos = self.lm.tokenizer.bos_id
            await self.worker.run(_until_ended(engine.submit([bos, bos], 2, stop_ids=())))
            if self.state == STARTING:
                self.state = READY
            log.info("ready", extra=took())
            # Both are there for whoever asks before; they take a core from the compiler.
            await run_in_threadpool(lambda: (self.lm.fingerprint, self.compiler.vocabulary))
            beside = max(cores // 2, 1)
            rest = self.settings.compile_rows or None
            for texts in ((slots,), rest) if rest else ((slots,), (1,), rest):
                await self._compile(texts, threads=beside, everything=texts is rest)
            self.compiled = True
            log.info("compiled", extra=took())
        except Exception:
            log.exception("compiling failed")
            if self.state == STARTING:
                self.state = FAILED

    async def _compile(self, texts, everything=False, **options):
        sampling = self.settings.compile_sampling
        options |= {"sampling": sampling, "everything": everything and sampling}
        await run_in_threadpool(self.worker.engine.compile_ahead, texts, **options)

    async def drain(self, seconds: float) -> int:
        """Takes nothing new, and waits for what is open.

        Args:
          seconds: For how long at most.

        Returns:
          How many texts have not ended by then.
        """
        self.state = DRAINING
        until, told = time.monotonic() + seconds, 0.0
        while (count := self.worker.num_open) and (now := time.monotonic()) < until:
            if now - told >= _TELL_EVERY:
                told = now
                fields = {"open_texts": count, "seconds_left": round(until - now, 1)}
                log.info("draining", extra={"fields": fields})
            await asyncio.sleep(0.05)
        return self.worker.num_open

    def check_ready(self) -> None:
        """Raises RequestError where no requests are taken now."""
        if self.state == STARTING:
            raise unavailable("the server compiles its programs; try again soon", "starting")
        if self.state == FAILED:
            raise unavailable("the server's programs did not compile; see its log", "failed")
        if self.state == DRAINING:
            raise unavailable("the server is about to end and takes nothing new", "draining")

    async def context(self, name: str | None, request: Request) -> Context | None:
        """Returns the context of a name, of whoever asks; None for no name.

        Raises:
          RequestError: there is none of this name.
        """
        return None if name is None else await self.contexts.get(owner_of(request), name)

    async def check(
        self,
        fields: type[Body],
        values: dict[str, Any],
        asked: Callable[["Service", Body, Context | None], Asked],
        request: Request,
    ) -> Asked:
        """Returns what a request asks for, checked in a thread of the pool, as it may take a while.

        Args:
          fields: The class of its body.
          values: Its body.
          asked: Takes this service, the body and the context that it names.
          request: The request.

        Raises:
          RequestError: it asks for what cannot be.
        """

        def parse():
            return protocol.parse(fields, values, self.name)

        if values.get("context") is None:
            return await run_in_threadpool(lambda: asked(self, parse(), None))
        body = await run_in_threadpool(parse)
        context = await self.context(body.context, request)
        return await run_in_threadpool(asked, self, body, context)

    def record(self, request: Request) -> Record:
        """Returns what the log will say of a request."""
        return request.scope["griffin.record"]

    def health(self) -> tuple[int, dict[str, Any]]:
        """Returns the status of /health, and its answer."""
        load = self.worker.engine.load()
        state, error = self.state, self.worker.last_error
        if not self.worker.alive:
            state = "failed"
        elif error is not None and state == READY:
            state = "failing"
        body = {
            "status": state,
            "model": self.name,
            "texts": load._asdict(),
            "device_failures": self.worker.failures,
            "last_error": None if error is None else type(error).__name__,
        }
        return (200 if state == READY else 503), body


def _until_ended(request):
    while not request.ended:
        yield


def owner_of(request: Request) -> str:
    """Returns whose contexts a request is about: a digest of its API key."""
    return request.scope["griffin.owner"]
