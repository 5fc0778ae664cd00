"""The sampler: prompts are read in chunks, tokens are drawn in bursts on the device."""

import copy
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from griffin_jax.config import GriffinConfig
from griffin_jax.inference import prefill
from griffin_jax.inference.decode import draw_burst, row_keys, stop_array
from griffin_jax.inference.finite import check_finite
from griffin_jax.inference.rows import Row, Sample, decoder_after
from griffin_jax.inference.sampling import SamplingConfig
from griffin_jax.inference.text import StoppedText
from griffin_jax.inputs import check_max_new_tokens, check_stop
from griffin_jax.kernels.packed_matmul_cpu import for_decoding
from griffin_jax.models import Griffin
from griffin_jax.models.stack import AnyState
from griffin_jax.sharding.mesh_function import mesh_of
from griffin_jax.tokenizer import Tokenizer

BURST = 16  # tokens of a dispatch at most
STREAM_SECONDS = 0.1  # that a burst takes: what a reader takes for steady


@dataclasses.dataclass(frozen=True)
class Context:
    """What a batch of texts leaves behind to go on from; nothing changes it, so copies are free.

    Attributes:
      state: The model's state after the first `read[i]` tokens of each row i, stacked where the
        model's layers are.
      tokens: All tokens of each row so far.
      read: How many of them the state has read. The rest is read first when the text goes on.
    """

    state: AnyState
    tokens: tuple[tuple[int, ...], ...]
    read: tuple[int, ...]

    def rows(self, rows: Sequence[int]) -> "Context":
        """Some rows, in any order and as often as wanted: [0] * 4 forks the first in four."""
        return Context(
            state=prefill.take_rows(self.state, np.asarray(rows, np.int32)),
            tokens=tuple(self.tokens[i] for i in rows),
            read=tuple(self.read[i] for i in rows),
        )


class Sampler:
    """Writes text after prompts.

    A prompt of any length is read by a few compiled programs (`prefill.CHUNKS`), and batch sizes
    are rounded up to powers of two. The state reads a prompt but for its last token; from there on
    a step reads one token and draws the next, many steps in one dispatch.

    Attributes:
      model: The model.
      params: Its parameters.
      tokenizer: Decodes the text and knows the stop tokens; without one, texts stay empty and only
        `max_new_tokens` ends them.
      mesh: The one that the parameters lie on, or None.
      burst: Steps in one dispatch. Between dispatches the host looks for stop strings.

    On a CPU, `params` get a second copy of 4-bit weights that decoding reads, if there is memory;
    `columns` says with or without. See `packed_matmul_cpu`.
    """

    def __init__(
        self,
        config: GriffinConfig,
        params: dict[str, Any],
        tokenizer: Tokenizer | None = None,
        *,
        dtype: DTypeLike = jnp.float32,
        burst: int = BURST,
        columns: bool | None = None,
    ):
        self.model = Griffin(config, dtype=jnp.dtype(dtype))
        self.params = for_decoding(params, columns)
        self.mesh = mesh_of(self.params)
        self.tokenizer = tokenizer
        self.burst = burst

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        context: Context | None = None,
        sampling: SamplingConfig | None = None,
        max_new_tokens: int = 64,
        seed: int | Sequence[int] | np.ndarray = 0,
        stop: str | Sequence[str] = (),
    ) -> "Generation":
        """Reads prompts; `Generation.advance` then writes.

        Args:
          prompts: Token ids of each row, of any lengths.
          context: What the rows have read and written before; None for nothing. A prompt may be
            empty where the context has a token left to read, as it has after "length".
          sampling: How tokens are drawn; greedily by default.
          max_new_tokens: At most this many per row.
          seed: One, or one per row, or the keys [rows, 2] of `row_keys`, which says what they mean.
          stop: Strings that end a text.

        Raises:
          ValueError: a prompt is empty or holds an id outside the vocabulary, or another value is
            out of its range.
        """
        return Generation(
            self,
            prompts,
            context,
            sampling or SamplingConfig(),
            max_new_tokens,
            seed if np.ndim(seed) == 2 else row_keys(seed, len(prompts)),
            stop,
        )

    def generate(self, prompts: Sequence[Sequence[int]], **options: Any) -> "Generation":
        """`start` with the same arguments, run to its end."""
        generation = self.start(prompts, **options)
        for _ in generation.bursts():
            pass
        return generation

    def stream(self, prompt: Sequence[int], **options: Any) -> Iterator[str]:
        """The text after one prompt in pieces; options as for `start`.

        The first token comes at once, later ones in bursts of a tenth of a second. Joined, the
        pieces are the text of `generate`: no piece splits a character or shows part of a stop
        string.
        """
        return self.start([prompt], **options).stream()


class Generation:
    """Rows that are being written.

    Attributes:
      done: Every row has ended.
    """

    def __init__(
        self,
        sampler: Sampler,
        prompts: Sequence[Sequence[int]],
        context: Context | None,
        sampling: SamplingConfig,
        max_new_tokens: int,
        keys: np.ndarray,
        stop: str | Sequence[str],
    ):
        max_new_tokens, stop = check_max_new_tokens(max_new_tokens), check_stop(stop)
        tokenizer = sampler.tokenizer
        if stop and tokenizer is None:
            raise ValueError("stop strings need a tokenizer; this model has none")
        if context is not None and len(prompts) != len(context.tokens):
            raise ValueError(f"{len(prompts)} prompts go on from {len(context.tokens)} rows")
        if not prompts:
            raise ValueError("there are no prompts; give at least one")

        rows = len(prompts)
        batch_size = prefill.batch_size_for(rows, sampler.params)
        history = context.tokens if context else ((),) * rows
        read = context.read if context else (0,) * rows
        self._sampler = sampler
        self._context = context
        self._texts = [(*h, *p) for h, p in zip(history, prompts, strict=True)]
        unread = [text[n:] for text, n in zip(self._texts, read, strict=True)]
        for i, row in enumerate(unread):
            prefill.check_tokens(row, sampler.model.config.vocab_size, f"prompt {i}")
        self._state = self._read([row[:-1] for row in unread])
        last = np.array([row[-1] for row in unread] + [0] * (batch_size - rows), np.int32)
        self._last = prefill.put(sampler.params, last)
        self._keys = np.zeros((batch_size, 2), np.uint32)
        self._keys[:rows] = keys
        self._values = sampling.active()
        self._seen = None
        if "repetition_penalty" in self._values:
            seen = np.zeros((batch_size, sampler.model.config.vocab_size), bool)
            for row, text in zip(seen, self._texts, strict=False):
                row[list(text)] = True
            self._seen = prefill.put(sampler.params, seen, "batch", "vocabulary")
        self._max_new_tokens = max_new_tokens
        self._steps = 0
        self._stop_ids = () if tokenizer is None else tokenizer.stop_ids
        self._rows = [
            Row(StoppedText(decoder_after(tokenizer, text), stop)) for text in self._texts
        ]
        if not max_new_tokens:
            for row in self._rows:
                row.end("length")
        self._has_stop_strings = bool(stop)
        self._alive = self._alive_on_host()

    def _alive_on_host(self):
        alive = np.zeros(len(self._last), bool)
        alive[: len(self._rows)] = [row.finish_reason is None for row in self._rows]
        return prefill.put(self._sampler.params, alive)

    def _read(self, rows):
        """The state of the context, or a fresh one, after more tokens of each row."""
        model, params = self._sampler.model, self._sampler.params
        batch_size = prefill.batch_size_for(len(rows), params)
        read = (0,) * len(rows) if self._context is None else self._context.read
        longest = max(n + len(row) + 1 for n, row in zip(read, rows, strict=True))
        if self._context is None:
            state = prefill.fresh_state(model, params, batch_size, longest)
        else:
            index = [*range(len(rows)), *[0] * (batch_size - len(rows))]
            state = prefill.select_rows(model, params, self._context.state, index, longest)
        return prefill.read(model, params, state, rows)

    @property
    def done(self) -> bool:
        return all(row.finish_reason for row in self._rows)

    @property
    def unfinished(self) -> list[int]:
        """The rows that have not ended."""
        return [i for i, row in enumerate(self._rows) if row.finish_reason is None]

    def take(self, rows: Sequence[int]) -> "Generation":
        """Some of the rows as a batch of their own, which goes on in place of this one.

        A step takes the time of all rows, whether they have ended or not: where few are left, a
        smaller batch is faster. Not between the steps of `bursts` or `stream`.

        Args:
          rows: Which, each once, and one at least.
        """
        taken = copy.copy(self)
        params = self._sampler.params
        spare = prefill.batch_size_for(len(rows), params) - len(rows)
        index = np.array([*rows, *[rows[0]] * spare], np.int32)
        taken._context = self._context and self._context.rows(rows)
        taken._texts = [self._texts[i] for i in rows]
        taken._rows = [self._rows[i] for i in rows]
        taken._state = prefill.take_rows(self._state, index)
        taken._last = prefill.put(params, jax.device_get(self._last)[index])
        taken._keys = self._keys[index]
        taken._seen = None if self._seen is None else jnp.take(self._seen, index, axis=0)
        taken._alive = taken._alive_on_host()
        return taken

    def advance(self, limit: int) -> None:
        """Writes up to `limit` tokens more in every row that has not ended.

        Raises:
          ValueError: logits are NaN or infinite; see `check_finite`.
        """
        self._receive(self._dispatch(limit))

    def bursts(self, seconds: float | None = None) -> Iterator[None]:
        """Runs to the end; yields whenever a burst has come in.

        While the host looks at a burst, the device is on the next one, unless there are stop
        strings: after one, nothing may be drawn. One that is under way when the caller leaves still
        comes in.

        Args:
          seconds: How long a burst is to take, the first being one token; None for all of
            `Sampler.burst`.
        """
        limit = 1 if seconds else self._sampler.burst
        coming, resumed = None, None
        try:
            while not self.done:
                burst = coming or self._dispatch(limit)
                coming = None
                if not self._has_stop_strings and self._steps < self._max_new_tokens:
                    coming = self._dispatch(limit)
                self._receive(burst)
                if seconds and resumed is not None:
                    # Of the caller's own time nothing counts. Twice as many as before at most.
                    waited = max(time.monotonic() - resumed, 1e-9)
                    wanted = max(int(burst.steps * seconds / waited), 1)
                    limit = min(wanted, 2 * burst.steps, self._sampler.burst)
                yield
                resumed = time.monotonic()
        finally:
            if coming is not None:
                self._receive(coming)

    def stream(self) -> Iterator[str]:
        """Runs to the end; yields the text of the first row in pieces."""
        for _ in self.bursts(STREAM_SECONDS):
            if piece := self._rows[0].text.take(self.done):
                yield piece

    def _dispatch(self, limit) -> "_Burst":
        """Has the device begin with up to `limit` tokens more in every row that has not ended."""
        sampler = self._sampler
        steps = min(limit, sampler.burst, self._max_new_tokens - self._steps)
        longest = max(map(len, self._texts)) + self._steps + steps
        self._state = prefill.with_room(sampler.model, self._state, longest)
        self._state, self._seen, self._last, self._alive, tokens, logprobs = draw_burst.on(
            sampler.mesh,
            sampler.model,
            sampler.burst,
            sampler.params,
            self._state,
            self._seen,
            self._last,
            self._alive_on_host() if self._has_stop_strings else self._alive,
            self._keys,
            np.int32(self._steps),
            np.int32(steps),
            stop_array(self._stop_ids),
            self._values,
        )
        self._steps += steps
        return _Burst(steps, self._steps == self._max_new_tokens, tokens, logprobs)

    def _receive(self, burst: "_Burst") -> None:
        """Waits for a burst, and adds it to the rows."""
        tokens, logprobs = jax.device_get((burst.tokens, burst.logprobs))
        check_finite(logprobs[tokens >= 0], self._sampler.model.dtype)
        for i, row in enumerate(self._rows):
            drawn = tokens[i] >= 0
            row.drawn += int(drawn.sum())
            for token, logprob in zip(
                tokens[i, drawn].tolist(), logprobs[i, drawn].tolist(), strict=True
            ):
                if row.finish_reason is None:
                    row.add(token, logprob, self._stop_ids)
            if burst.last and row.finish_reason is None:
                row.end("length")

    def samples(self) -> list[Sample]:
        """What each row has written so far."""
        return [row.sample() for row in self._rows]

    def context(self) -> Context:
        """Prompts and samples, to go on from; stop tokens and stop strings are not part of it."""
        before = [len(text) - 1 for text in self._texts]
        tokens = tuple(
            (*text, *row.sample().tokens) for text, row in zip(self._texts, self._rows, strict=True)
        )
        read = tuple(n + row.drawn for n, row in zip(before, self._rows, strict=True))
        if all(n <= len(text) for n, text in zip(read, tokens, strict=True)):
            state = self._state
        else:
            # A stop string was seen only after the state had read on: read again up to the cut.
            begin = self._context.read if self._context else (0,) * len(tokens)
            state = self._read([text[n:] for text, n in zip(tokens, begin, strict=True)])
            read = tuple(map(len, tokens))
        return Context(prefill.take_rows(state, np.arange(len(tokens))), tokens, read)


@dataclasses.dataclass
class _Burst:
    """What the device draws: `steps` tokens a row, the last ones where `last` says so."""

    steps: int
    last: bool
    tokens: jax.Array
    logprobs: jax.Array
