"""One text that an engine is asked for: what its caller holds, and what the engine knows of it."""

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from griffin_jax.inference import grammar
from griffin_jax.inference.context import Context
from griffin_jax.inference.overflow import check_finite
from griffin_jax.inference.plan import Plan
from griffin_jax.inference.text import StoppedText
from griffin_jax.models.stack import AnyState
from griffin_jax.tokenizer import StreamDecoder, Tokenizer

TopLogprobs = list[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the model wrote.

    Attributes:
      text: The text, without what ended it.
      tokens: Token ids, without the stop token. Where a stop string ended the text, these are the
        fewest tokens whose text begins with `text`.
      logprobs: Log-probability of each token under the model's own distribution: temperature 1,
        no penalty, no filter.
      finish_reason: "stop" for a stop token or stop string, "length" for max_new_tokens,
        "cancelled" or "deadline".
      top_logprobs: For each token the most likely ones in its place, (token, log-probability), as
        many as were asked for; None where none were.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: str
    top_logprobs: list[TopLogprobs] | None = None


class Owner(Protocol):
    """What a request asks of its engine."""

    changed: threading.Condition

    def wait_for(self, request: "Request", tokens: int | None) -> None:
        """Waits until a request has ended or, unless None, has more than so many tokens."""

    def watch(self, request: "Request") -> None:
        """Looks at a request before each turn, as it may be to end before its text does."""

    def context_of(self, request: "Request") -> Context:
        """Returns what the text of a request that has ended leaves behind."""
        ...


class Request:
    """A text that is being written; `Engine.submit` makes it.

    Iterating yields the text in pieces as they come: no piece splits a character or shows part of
    a stop string, and joined they are the text of `result`. All of it may be used from any thread.

    Attributes:
      number: How many requests the engine had before; -1 until it has taken it.
      plan: What was asked for.
      cached_tokens: How many tokens of the text did not have to be read, as the cache knew them.
      finish_reason: As of `Sample`, or "error"; None until it has ended.
      stop_token: The stop token that ended the text, its log-probability, and the most likely tokens in
        its place (None where none were asked for); None where no stop token ended it.
      error: What made it fail; None if nothing has.
      submitted: When it came, by `time.monotonic`.
      first_token_at: When the host had its first token; None until then.
      ended_at: When it ended; None until then.
    """

    def __init__(
        self,
        engine: Owner,
        plan: Plan,
        tokenizer: Tokenizer | None,
        state: AnyState | None,
        read: int,
    ):
        self.number = -1
        self.plan = plan
        self.finish_reason: str | None = None
        self.stop_token: tuple[int, float, TopLogprobs | None] | None = None
        self.error: Exception | None = None
        self.submitted = time.monotonic()
        self.first_token_at: float | None = None
        self.ended_at: float | None = None
        self._engine = engine
        self._text = StoppedText(decoder_after(tokenizer, plan.tokens), plan.stop)
        self._stop_ids = frozenset(plan.stop_ids)
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._tops: list[TopLogprobs] = []
        self._cancelled = False
        self._taken = 0  # tokens that `take` has returned
        # What the reader and the pool know: the state after `read` tokens, which has room for `room`; the
        # one after the prompt, where it may be needed again; how many steps were dispatched; and the
        # number that the user's own way of drawing has in the engine.
        self.state, self.read, self.room = state, read, 0
        self.after_prompt: AnyState | None = None
        self.dispatched = 0
        # What the prefix cache knows: whether it may know the text, how many tokens it knew, and where the
        # text is read up to next to keep a state.
        self.shares, self.cached_tokens = False, 0
        self.cut: int | None = None
        self.method = -1
        # What drafts by looking up would have spared, where the engine speculates.
        self.history: Any = None
        # What the grammar says: whether only the end may follow, and what may, packed; None without one.
        self.is_complete, self.mask = False, None

    def __repr__(self) -> str:
        state = self.finish_reason or "unfinished"
        return (
            f"Request({self.number}: {len(self.plan.tokens)} + {len(self._tokens)} tokens, {state})"
        )

    def __iter__(self) -> Iterator[str]:
        ended = False
        while not ended:
            with self._engine.changed:
                ended, count = self.ended, len(self._tokens)
                piece = self._text.take(ended)
            if piece:
                yield piece
            if not ended:
                self._engine.wait_for(self, count)
        if self.error is not None:
            raise self.error

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.finish_reason is not None

    @property
    def stopped_by_string(self) -> bool:
        """Whether a stop string ended the text, so that its state has read on."""
        return self._text.stopped

    @property
    def reason_for_nothing(self) -> str | None:
        """As of `finish_reason`, where nothing is to be drawn; None where something is."""
        if self.is_complete:
            return "stop"
        return None if self.plan.max_new_tokens else "length"

    @property
    def unread(self) -> int:
        """How many tokens are to be read before the first draw: all but the last one."""
        return max(len(self.plan.tokens) - 1 - self.read, 0)

    @property
    def num_tokens(self) -> int:
        """How many tokens there are so far."""
        return len(self._tokens)

    @property
    def num_drawn(self) -> int:
        """How many tokens were drawn, a stop token included."""
        return len(self._tokens) + (self.stop_token is not None)

    def text_so_far(self) -> tuple[int, ...]:
        """Returns the prompt's tokens and all that were drawn."""
        return (*self.plan.tokens, *self._tokens)

    def result(self) -> Sample:
        """Returns what was written, once it has ended; a cancelled request has what it had until
        then.

        Raises:
          ValueError: the logits are NaN or infinite, or a user's method drew what is no token.
        """
        while not self.ended:
            self._engine.wait_for(self, None)
        if self.error is not None:
            raise self.error
        return self.sample()

    def sample(self) -> Sample:
        """Returns what has been written so far."""
        with self._engine.changed:
            count = self._text.num_tokens()
            tops = self._tops[:count] if self.plan.logprobs else None
            return Sample(
                self._text.text,
                self._tokens[:count],
                self._logprobs[:count],
                self.finish_reason,
                tops,
            )

    def take(self) -> Sample:
        """Returns what has been written since the last call, without waiting for more.

        Pieces are those of an iteration, whose place this takes: joined, they are what `result`
        returns. A token comes with the piece in which its text ends.
        """
        with self._engine.changed:
            piece = self._text.take(self.ended)
            begin, end = self._taken, self._text.num_tokens()
            if not self.ended:
                end = max(begin, self._text.num_taken())
            self._taken = end
            tops = self._tops[begin:end] if self.plan.logprobs else None
            return Sample(
                piece,
                self._tokens[begin:end],
                self._logprobs[begin:end],
                self.finish_reason,
                tops,
            )

    def cancel(self) -> bool:
        """Ends the request, which keeps what it has; others go on undisturbed.

        Returns:
          Whether it had not ended of itself.

        Raises:
          ValueError: it was cancelled before.
        """
        with self._engine.changed:
            if self._cancelled:
                raise ValueError(f"request {self.number} was cancelled before")
            self._cancelled = True
            self._engine.watch(self)
            return not self.ended

    def check_engine(self, engine: Owner) -> None:
        """Raises ValueError where another engine has the request."""
        if engine is not self._engine:
            raise ValueError(f"request {self.number} is another engine's; ask that one for it")

    def context(self) -> Context:
        """Returns prompt and text, to go on from; stop tokens and stop strings are not part of it.

        Raises:
          ValueError: the request has not ended, was not submitted with `keep_context`, or ended before
            its prompt had been read, or with its engine.
        """
        return self._engine.context_of(self)

    def overdue(self, now: float) -> str | None:
        """Returns why the request should end before its text does; None if it should not."""
        if self._cancelled:
            return "cancelled"
        late = self.plan.deadline is not None and now >= self.plan.deadline
        return "deadline" if late else None

    def add(
        self, tokens: Sequence[int], logprobs: Sequence[float], tops: Sequence[TopLogprobs] | None
    ) -> None:
        """Takes what was drawn next: it may hold a stop token, after which nothing counts."""
        if self.first_token_at is None and len(tokens):
            self.first_token_at = time.monotonic()
        stop = len(tokens)
        if not self._stop_ids.isdisjoint(tokens):
            stop = next(i for i, token in enumerate(tokens) if token in self._stop_ids)
        count = min(stop, self.plan.max_new_tokens - len(self._tokens))
        count = self._text.add(tokens[:count])
        self._tokens += tokens[:count]
        self._logprobs += logprobs[:count]
        if tops is not None:
            self._tops += [top[: self.plan.logprobs] for top in tops[:count]]
        if self._text.stopped or len(self._tokens) == self.plan.max_new_tokens:
            self.end("length")
        elif stop < len(tokens):
            top = None if tops is None else tops[stop][: self.plan.logprobs]
            self.stop_token = (tokens[stop], logprobs[stop], top)
            self.end("stop")

    def ask_grammar(self, vocab_size: int) -> None:
        """Asks the grammar, if there is one, what may follow; `mask` is what it says.

        Raises:
          ValueError: its mask is none.
          Exception: what the grammar itself raises.
        """
        if self.plan.grammar is None:
            return
        mask = self.plan.grammar.allowed(list(self._tokens))
        self.mask = grammar.packed(mask, vocab_size)
        self.is_complete = not grammar.allows_more_than(self.mask, self.plan.stop_ids)

    def check(
        self, tokens: Sequence[int], logprobs: Sequence[float], vocab_size: int, dtype: Any
    ) -> None:
        """Raises ValueError where what was drawn is no token, or came of no numbers."""
        if any(token >= vocab_size for token in tokens):
            raise ValueError(
                f"a sampling method drew a token outside the vocabulary; ids are 0 to "
                f"{vocab_size - 1}"
            )
        if self.mask is not None and not all(grammar.allows(self.mask, t) for t in tokens):
            raise ValueError(
                "the grammar and the other settings (allowed_tokens, logit_bias, min_tokens) "
                "leave no token to draw"
            )
        check_finite(np.asarray(logprobs), dtype)

    def end(self, reason: str) -> None:
        """Ends the text: nothing more comes, for `reason` if not for a stop string."""
        self._text.finish()
        self.finish_reason = "stop" if self._text.stopped else reason
        self.ended_at = time.monotonic()

    def fail(self, error: Exception) -> None:
        """Ends the text: nothing more comes, because of an error."""
        self.error = error
        self._text.finish()
        self.finish_reason = "error"
        self.ended_at = time.monotonic()


def decoder_after(tokenizer: Tokenizer | None, text: Sequence[int]) -> StreamDecoder | None:
    """Returns a decoder that goes on after the tokens of `text`; None without a tokenizer."""
    if tokenizer is None:
        return None
    decoder = StreamDecoder(tokenizer)
    # A space at the beginning of a text may be the vocabulary's own; after a prompt it is real.
    # And a prompt may end within a character, of which no more than four tokens are bytes.
    decoder.push(text[-4:])
    return decoder
