"""The engine: writes many texts at once, which come and go at any moment.

A request waits for a place, is read in calls of a few tokens in a state of its own (`reader`), then
has a row of the pool (`pool`), in which it is drawn together with the others until it ends. Between
two bursts of draws there is one call of reading, so that rows never wait longer than for that; and
the device is on the next burst while the host looks at the last one. Each text is the one that its
request gets alone, whoever comes and goes beside it.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from griffin_jax.config import GriffinConfig
from griffin_jax.fields import check_value
from griffin_jax.inference.compiling import Ahead
from griffin_jax.inference.context import Context
from griffin_jax.inference.grammar import Grammar
from griffin_jax.inference.plan import make_plan
from griffin_jax.inference.pool import Pool
from griffin_jax.inference.prefix_cache import PrefixCache
from griffin_jax.inference.reader import Reader
from griffin_jax.inference.request import Request
from griffin_jax.inference.row_states import read_text
from griffin_jax.inference.sampling import SamplingConfig, SamplingMethod, sampling_from
from griffin_jax.inference.scheduler import Scheduler
from griffin_jax.inference.speculation import Speculation, speculator_of
from griffin_jax.inference.stats import EngineStats, Load
from griffin_jax.inference.turns import Turns
from griffin_jax.inputs import check_type
from griffin_jax.models import Griffin
from griffin_jax.tokenizer import Tokenizer

BURST = 32  # steps of a dispatch at most
STREAM_SECONDS = 0.1  # that a burst takes: what a reader takes for steady


class EngineClosed(RuntimeError):
    """An engine was used after `close`."""


class EngineFull(RuntimeError):
    """As many requests wait as an engine lets wait."""


class Engine:
    """Writes texts after prompts, many at once.

    Requests may come from any thread. Nothing happens in the background unless a thread calls
    `drive`: whoever waits for a request, or calls `run`, takes the engine's next turn.

    Attributes:
      model: The model.
      params: Its parameters; on a CPU those of `models.prepare_decoding`.
      tokenizer: Decodes the text and knows the stop tokens; without one, texts stay empty and only
        `max_new_tokens` ends them.
      stats: What the engine has done so far.
      changed: Held while requests change, and notified when they have.
    """

    def __init__(
        self,
        config: GriffinConfig,
        params: dict[str, Any],
        tokenizer: Tokenizer | None = None,
        *,
        dtype: DTypeLike = jnp.float32,
        slots: int = 32,
        waiting: int | None = None,
        burst: int = BURST,
        seconds: float | None = STREAM_SECONDS,
        fill_first: bool = False,
        prefix_cache: PrefixCache | None = None,
        speculate: Speculation | bool | None = None,
    ):
        """Makes an engine that has no rows yet.

        Args:
          config: The model's shape.
          params: Its parameters.
          tokenizer: Its tokenizer.
          dtype: The dtype of activations, keys and values.
          slots: How many texts are read and written at once.
          waiting: How many more may wait for a slot; None for any number.
          burst: Steps in one dispatch at most; half as many where somebody reads along, a text
            waits for a row, or drafts may be made.
          seconds: How long a burst is to take at most, the first of a text being one step; None for
            bursts that do not look at the clock, which is the faster way where nobody reads along.
          fill_first: The faster way where all requests are there from the beginning: draw only once
            every slot is taken, or nothing waits; read half as many prompts ahead; and begin, among
            requests of one priority, with those that ask for most tokens, as the last ones to end
            leave rows empty.
          prefix_cache: Reads once what prompts have in common; None reads each by itself.
          speculate: Draft a few tokens at a time and check them in one call, where that pays; True
            for the defaults of `Speculation`.

        Raises:
          ValueError: the cache belongs to another model, or another value is out of its range.
        """
        slots = check_value("slots", slots, int, at_least=1)
        burst = check_value("burst", burst, int, at_least=1)
        waiting = check_value("waiting", waiting, int | None, at_least=0)
        seconds = check_value("seconds", seconds, float | None, above=0)
        fill_first = check_value("fill_first", fill_first, bool)
        if prefix_cache is not None:
            check_type("prefix_cache", prefix_cache, PrefixCache, "a PrefixCache")
        self.model = Griffin(config, dtype=jnp.dtype(dtype))
        self.params = params
        self.tokenizer = tokenizer
        self.stats = EngineStats()
        self.changed = threading.Condition(threading.RLock())
        # Several processes must dispatch the same programs, which no clock may decide.
        seconds = seconds if jax.process_count() == 1 else None
        speculator = speculator_of(speculate, self.model, params)
        pool = Pool(self.model, params, self.stats, slots, burst, seconds, speculator)
        pool.keeps_states = prefix_cache is not None and not prefix_cache.exact
        if prefix_cache is not None:
            prefix_cache.bind(params, self)
        reader = Reader(self.model, params, self.stats, prefix_cache, fill_first)
        self._scheduler = Scheduler(
            reader, pool, self.stats, self.changed, prefix_cache, self.context_of, fill_first
        )
        self._ahead = Ahead(self.model, params, burst, pool.programs, reader)
        self._most_waiting = waiting
        self._prefix_cache = prefix_cache
        self._turns = Turns(self._scheduler, self.stats, self.changed)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 64,
        *,
        sampling: SamplingConfig | SamplingMethod | None = None,
        seed: int | np.ndarray = 0,
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] | None = None,
        logprobs: int = 0,
        context: Context | None = None,
        keep_context: bool = False,
        priority: int = 0,
        deadline: float | None = None,
        grammar: Grammar | None = None,
        min_tokens: int = 0,
        name: str = "prompt",
        **settings: Any,
    ) -> Request:
        """Asks for the text after a prompt.

        Args:
          prompt: Text, which begins with BOS unless there is a context, or token ids, taken as they
            are. It may be empty where the context has a token left to read, as it has after
            "length".
          max_new_tokens: At most this many.
          sampling: How tokens are drawn, greedily by default: a `SamplingConfig`, or an object of
            one's own with the method of `SamplingMethod`.
          seed: The seed of the text's random stream; or the key of one, a row of `row_keys`.
          stop: Strings that end the text.
          stop_ids: Tokens that end it; by default those of the tokenizer.
          logprobs: Report so many of the most likely tokens with each token.
          context: What was read and written before; it is not changed.
          keep_context: Whether `Request.context` will be asked for, which keeps a state.
          priority: Waiting requests of a larger number go first; among equals, who came first.
          deadline: Seconds from now after which the request ends with what it has.
          grammar: Says before each step which tokens may follow; an object of this request's own.
          min_tokens: Stop tokens cannot be drawn before so many others were.
          name: What messages call the prompt.
          **settings: Fields of `SamplingConfig`, in place of `sampling`.

        Raises:
          ValueError: the prompt is empty or holds an id outside the vocabulary, or another value is
            out of its range.
          TypeError: there is no such option.
          Exception: what the grammar raises when it is asked for the first time.
          EngineFull: too many requests wait.
          EngineClosed: the engine is closed.
        """
        plan = make_plan(
            self.model.config,
            self.tokenizer,
            prompt,
            max_new_tokens,
            sampling=sampling_from(sampling, settings),
            seed=seed,
            stop=stop,
            stop_ids=stop_ids,
            logprobs=logprobs,
            context=context,
            keep_context=keep_context,
            priority=priority,
            deadline=deadline,
            grammar=grammar,
            min_tokens=min_tokens,
            name=name,
        )
        state, read = (context.state, context.read) if context else (None, 0)
        request = Request(self, plan, self.tokenizer, state, read)
        request.ask_grammar(self.model.config.vocab_size)
        with self.changed:
            if self._turns.closed:
                raise EngineClosed("the engine is closed; make another one")
            waiting = self._scheduler.waiting
            if self._most_waiting is not None and len(waiting) >= max(self._most_waiting, 1):
                raise EngineFull(
                    f"{len(waiting)} requests wait, which is this engine's bound; try later"
                )
            request.number = self.stats.submitted
            request.method = self._method(plan.method)
            self.stats.submitted += 1
            self.stats.alone_tokens += len(plan.tokens) - 1
            if keep_context or request.reason_for_nothing is None:
                waiting.push(request)
                if plan.deadline is not None:
                    self.watch(request)
            else:  # which costs no work
                self._scheduler.end(request, request.reason_for_nothing)
            self.changed.notify_all()
        return request

    def compile_ahead(
        self,
        texts: Sequence[int] | None = None,
        *,
        longest: int | None = None,
        sampling: bool = True,
        everything: bool = False,
        threads: int | None = None,
    ) -> None:
        """Compiles what requests will need, several programs at once; from any thread.

        From then on the rows are as many as were compiled for, as long as one of these numbers
        suffices. Where a request needs more than the programs do, all rows are run by one program
        for everything, of as many rows as there are slots, which `everything` compiles ahead, too.
        Programs for lists of likely tokens, ways of drawing of one's own, drafts and texts that outgrow
        an unbounded window's slots are compiled when they are first needed, as all are without this.

        Args:
          texts: For so many texts at once, whose programs serve fewer as well; None for all numbers
            that there may be.
          longest: Compile only the calls that read so many tokens at most, but for those of the
            shortest length. As long as nothing longer has been compiled ahead, prompts are read by
            these alone. None compiles all.
          sampling: Have every program draw at temperatures and keep to filters where a request
            asks for it, so that greedy and other requests share one.
          everything: Compile also for penalties, biases, allowed tokens, grammars and `min_tokens`.
          threads: Programs that are compiled at once; None for as many as there are cores.

        Raises:
          ValueError: a value is out of its range.
        """
        texts = check_value("texts", texts, tuple[int, ...] | None, filled=True)
        longest = check_value("longest", longest, int | None, at_least=1)
        threads = check_value("threads", threads, int | None, at_least=1)
        self._ahead.compile(
            texts, longest, sampling, everything, lambda: not self._turns.closed, threads
        )

    def step(self, limit: int | None = None) -> bool:
        """Takes one turn: dispatches what is next, then receives what was dispatched before.

        What the device raises ends the requests that it hits, and is told by their `result`.

        Args:
          limit: Steps of the burst at most.

        Returns:
          Whether anything is left to do.
        """
        return self._turns.take(limit)

    def run(self) -> None:
        """Takes turns until every request has ended."""
        while self.step():
            pass

    def as_ended(self, requests: Iterable[Request]) -> Iterator[Request]:
        """Yields requests as they end, taking turns meanwhile.

        Raises:
          ValueError: a request is one of another engine.
        """
        left = list(requests)
        for request in left:
            request.check_engine(self)
        while left:
            self._turns.wait_until(lambda: any(request.ended for request in left))  # noqa: B023
            ended = [request for request in left if request.ended]
            left = [request for request in left if not request.ended]
            yield from ended

    def drive(self) -> None:
        """Takes turns until the engine is closed; for a thread of its own."""
        self._turns.drive()

    def settle(self) -> None:
        """Receives all that has been dispatched, and dispatches nothing."""
        with self._turns.between():
            self._scheduler.settle()

    def close(self) -> None:
        """Ends all requests, which keep what they have, and lets go of the rows."""
        with self.changed:
            self._turns.closed = True
        with self._turns.between():
            self._scheduler.end_all()
        if self._prefix_cache is not None:
            self._prefix_cache.release(self)

    @property
    def last_error(self) -> Exception | None:
        """What the device raised last; None if it has raised nothing."""
        return self._scheduler.last_error

    def load(self) -> Load:
        """Returns how busy the engine is now; from any thread."""
        scheduler = self._scheduler
        return Load(
            waiting=len(scheduler.waiting),
            reading=len(scheduler.reader.requests),
            writing=len(scheduler.pool.active),
            slots=scheduler.pool.slots,
            state_bytes=scheduler.pool.nbytes,
        )

    def wait_for(self, request: Request, tokens: int | None) -> None:
        """Waits until a request has ended or, unless None, has more than so many tokens."""

        self._turns.wait_until(
            lambda: request.ended or (tokens is not None and request.num_tokens > tokens)
        )

    def watch(self, request: Request) -> None:
        """See `request.Owner`; `changed` is held."""
        self._scheduler.watched.append(request)

    def context_of(self, request: Request) -> Context:
        """See `Request.context`."""
        if not request.ended or request.state is None:
            if not request.ended:
                why = "has not ended"
            elif not request.plan.keeps_context:
                why = "was submitted without keep_context"
            else:  # cancelled, overdue, failed or closed
                why = "ended before its prompt had been read, or with its engine"
            raise ValueError(f"request {request.number} {why}: there is no context of it")
        before, sample = len(request.plan.tokens) - 1, request.sample()
        tokens = (*request.plan.tokens, *sample.tokens)
        if not request.stopped_by_string:
            # One that was cancelled while it waited has read what its own context had.
            read = request.read + request.num_drawn
            return Context(request.state, tokens, min(read, len(tokens)))
        # After a stop string was seen the state had read on: read again up to the cut.
        with self._turns.between():
            state = read_text(self.model, self.params, request.after_prompt, tokens, before)
        return Context(state, tokens, len(tokens))

    def _method(self, method):
        """Returns the number of a user's way of drawing; -1 for None."""
        if method is None:
            return -1
        with self.changed:
            if method not in self._scheduler.pool.methods:
                self._scheduler.pool.methods.append(method)
            return self._scheduler.pool.methods.index(method)
