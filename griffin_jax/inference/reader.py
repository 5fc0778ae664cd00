"""Reading the prompts of requests, a few tokens a call, side by side."""

from collections.abc import Sequence

import jax

from griffin_jax.inference import prefill
from griffin_jax.inference.request import Request
from griffin_jax.inference.row_states import fresh_row, read_rows
from griffin_jax.inference.stats import EngineStats
from griffin_jax.models import Griffin
from griffin_jax.models.stack import AnyState


class Reader:
    """The requests whose prompts are being read; each has a state of its own.

    Calls take turns between the request that came first and the one that has least left to read:
    neither does a long prompt starve short ones, nor the other way round.

    Attributes:
      requests: Those that are being read, in the order in which they came.
    """

    def __init__(self, model: Griffin, params: dict, stats: EngineStats):
        self.requests: list[Request] = []
        self._model, self._params, self._stats = model, params, stats
        self._fresh: dict[int | None, AnyState] = {}
        self._turn = 0
        # Short calls of several texts together cost an accelerator little more than one, and a mesh
        # cuts a batch. A CPU's time follows the tokens.
        self._tokens_per_call = 1 if jax.default_backend() == "cpu" else max(prefill.CHUNKS)
        self._least = prefill.batch_size_for(1, params)

    def add(self, request: Request) -> None:
        """Begins to read a request, from the state that it brings or from nothing."""
        if request.state is None:
            request.room = min(len(request.plan.tokens), max(prefill.CHUNKS))
            request.state = self._fresh_row(request.room)
        else:
            request.room = prefill.slots_of(request.state)
        self.requests.append(request)

    def read(self) -> jax.Array | None:
        """Dispatches one call; returns a number that is there when it is done, None for no call."""
        unread = [request for request in self.requests if request.unread]
        if not unread:
            return None
        batch, length = self._next_batch(unread)
        # Under an unbounded window: slots for what comes.
        room = max(max(r.read + count + 1, r.room) for r, count in batch)
        after, done = read_rows(
            self._model,
            self._params,
            [prefill.with_room(self._model, r.state, room) for r, _ in batch],
            [r.plan.tokens[r.read : r.read + count] for r, count in batch],
            length,
        )
        self._stats.count_read(sum(count for _, count in batch), length * len(batch))
        for (request, count), state in zip(batch, after, strict=True):
            request.state, request.room = state, room
            request.read += count
        return done

    def take_ready(self) -> list[Request]:
        """Removes and returns the requests that have been read to their end."""
        ready = [request for request in self.requests if not request.unread]
        self.requests = [request for request in self.requests if request.unread]
        return ready

    def _next_batch(self, unread: Sequence[Request]) -> tuple[list[tuple[Request, int]], int]:
        """Texts to be read in one call, with how many tokens of each, and the call's length."""
        self._turn += 1
        first = unread[0] if self._turn % 2 else min(unread, key=lambda r: r.unread)
        _, length = _next_chunk(first)
        most = max(self._tokens_per_call // length, self._least)
        batch = []
        for request in [first, *(r for r in unread if r is not first)]:
            count, own = _next_chunk(request)
            if own == length and len(batch) < most:
                batch.append((request, count))
        return batch, length

    def _fresh_row(self, tokens):
        capacity = prefill.capacity_for(self._model.config, tokens)
        if capacity not in self._fresh:
            self._fresh[capacity] = fresh_row(self._model, self._params, tokens)
        return self._fresh[capacity]


def _next_chunk(request):
    """How many tokens the next call reads of a text, and the length of that call."""
    length = prefill.chunk_lengths(request.unread, 1)[0]
    return min(request.unread, length), length
