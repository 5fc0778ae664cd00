"""Reading the prompts of requests, a few tokens a call, side by side."""

from collections.abc import Sequence

import jax

from griffin_jax.inference import prefill
from griffin_jax.inference.dispatched import Reading
from griffin_jax.inference.prefix_cache import PrefixCache
from griffin_jax.inference.request import Request
from griffin_jax.inference.row_states import fresh_row, read_rows, rows_of_a_call
from griffin_jax.inference.stats import EngineStats
from griffin_jax.models import Griffin
from griffin_jax.models.stack import AnyState

_TEXTS_ON_CPU = 16  # whose shortest calls go together


def next_chunk(
    position: int,
    remaining: int,
    every: int | None,
    far: int | None = None,
    longest: int | None = None,
) -> tuple[int, int]:
    """Returns how many tokens the next call reads of a text, and the length of that call.

    Args:
      position: How many tokens of the text have been read.
      remaining: How many there are to read, at least one.
      every: None for the fewest calls. Otherwise calls end at absolute positions: at multiples of
        `every` as long as the text lasts, then at those of shorter calls, so that two texts that
        begin alike are read by the same calls as far as those positions. Either way a CPU, which
        takes as long for padding as for tokens, has more and shorter calls where they are faster.
      far: From there on, calls end at multiples of it instead of those of `every`; None for nowhere.
      longest: No call is longer, but for those of the shortest length; None for any length.
    """
    if every is None:
        length = prefill.chunk_lengths(remaining, 1, _up_to(longest))[0]
        return min(remaining, length), length
    if far is not None and position >= far:
        every = far
    end = position - position % every + every
    if far is not None and position < far:
        end = min(end, far)
    remaining = min(remaining, end - position)
    lengths = _up_to(every if longest is None else min(every, longest))
    for length in lengths[::-1]:
        count = min(remaining, length - position % length)
        if length < 2 * count:
            break
    length = prefill.chunk_lengths(count, 1, _up_to(length))[0]
    return min(count, length - position % length), length


def _up_to(longest):
    """Returns the lengths of calls that are no longer, ascending; the shortest is one of them."""
    lengths = prefill.call_lengths()
    return lengths if longest is None else [c for c in lengths if c <= max(longest, lengths[0])]


class Reader:
    """The requests whose prompts are being read; each has a state of its own.

    Calls take turns between the request that came first and the one that has least left to read:
    neither does a long prompt starve short ones, nor the other way round. Where none is waited for,
    the one that has most left goes first, so that all come to their short calls together.

    Attributes:
      requests: Those that are being read, in the order in which they came.
      longest: Longer calls than of so many tokens have not been compiled yet, where others have been
        ahead, and are not waited for; None for no bound.
    """

    def __init__(
        self,
        model: Griffin,
        params: dict,
        stats: EngineStats,
        cache: PrefixCache | None,
        longest_first: bool = False,
    ):
        self.requests: list[Request] = []
        self.longest: int | None = None
        self._model, self._params, self._stats = model, params, stats
        self._cache = cache
        self._longest_first = longest_first
        self._fresh: dict[int | None, AnyState] = {}
        self._turn = 0
        # Short calls of several texts together cost an accelerator little more than one, and a mesh
        # cuts a batch. A CPU's time follows the tokens, with some for each call: there the shortest
        # go together, where no text waits for its own.
        self._pays_for_padding = jax.default_backend() == "cpu"
        self._tokens_per_call = max(prefill.CHUNKS)
        if self._pays_for_padding:
            self._tokens_per_call = _TEXTS_ON_CPU * min(prefill.CHUNKS) if longest_first else 1
        self._least = prefill.batch_size_for(1, params)

    def calls(self, texts: int, longest: int | None = None) -> list[tuple[int, int]]:
        """Returns which calls there may be where so many texts are read at once: (texts, length).

        Args:
          texts: See above.
          longest: As of `next_chunk`.
        """
        if self._cache is not None:
            most = self._cache.far or self._cache.every
            longest = most if longest is None else min(most, longest)
        found = []
        for length in _up_to(longest):
            most = min(self._most(length), texts)
            counts = {rows_of_a_call(count, self._params) for count in range(1, most + 1)}
            found += [(count, length) for count in sorted(counts)]
        return found

    def add(self, request: Request) -> None:
        """Begins to read a request, from the state that it brings or from nothing."""
        if request.state is None:
            request.room = min(len(request.plan.tokens), max(prefill.CHUNKS))
            request.state = self._fresh_row(request.room)
            if self._cache is not None:
                request.shares = True
                self._look_up(request)
                most = len(request.plan.tokens) - 1
                self._cache.count(request.plan.tokens, most, request.cached_tokens > 0)
        else:
            request.room = prefill.slots_of(request.state)
        self.requests.append(request)

    def read(self) -> Reading | None:
        """Dispatches one call; None where nothing is left to read."""
        unread = [request for request in self.requests if request.unread]
        if not unread:
            return None
        batch, length = self._next_batch(unread)
        reading = Reading(tuple(request for request, _ in batch))
        try:
            reading.done = self._read(batch, length)
        except Exception as error:
            reading.error = error
        return reading

    def _read(self, batch, length):
        """Reads so many tokens of each text; returns a number that is there when that is done."""
        # Under an unbounded window: slots for what comes.
        room = max(max(r.read + count + 1, r.room) for r, count in batch)
        with self._stats.dispatching():
            after, done = read_rows(
                self._model,
                self._params,
                [prefill.with_room(self._model, r.state, room) for r, _ in batch],
                [r.plan.tokens[r.read : r.read + count] for r, count in batch],
                length,
            )
        rows = rows_of_a_call(len(batch), self._params)
        self._stats.count_read(sum(count for _, count in batch), length * rows)
        for (request, count), state in zip(batch, after, strict=True):
            request.state, request.room = state, room
            request.read += count
            self._keep(request)
        return done

    @property
    def is_reading(self) -> bool:
        """Whether there is anything left to read."""
        return any(request.unread for request in self.requests)

    def take_ready(self, most: int) -> list[Request]:
        """Removes and returns the requests that have been read to their end, at most so many."""
        ready = [request for request in self.requests if not request.unread][:most]
        self.requests = [request for request in self.requests if request not in ready]
        return ready

    def _next_batch(self, unread: Sequence[Request]) -> tuple[list[tuple[Request, int]], int]:
        """Texts to be read in one call, with how many tokens of each, and the call's length."""
        self._turn += 1
        if self._longest_first:
            unread = sorted(unread, key=lambda r: -r.unread)
        first = unread[0]
        if not (self._longest_first or self._turn % 2):
            first = min(unread, key=lambda r: r.unread)
        batch, length, most, beginnings = [], 0, 0, set()
        for request in [first, *(r for r in unread if r is not first)]:
            if request.shares:
                self._look_up(request)
            if not request.unread:
                continue
            count, own = self._next_chunk(request)
            if not length:
                length, most = own, self._most(own)
            if own != length or len(batch) == most:
                continue
            if request.shares:
                # What two texts have in common is read once: the other finds it in its next turn.
                beginning = request.plan.tokens[: request.read + count]
                if beginning in beginnings:
                    continue
                beginnings.add(beginning)
            batch.append((request, count))
            if len(batch) == most:
                break
        return batch[: self._worth_a_call(len(batch))], length

    def _worth_a_call(self, texts):
        """Returns how many of so many texts one call reads, where its empty rows cost, too."""
        rows = rows_of_a_call(texts, self._params)
        if self._pays_for_padding and rows > self._least and 4 * texts < 3 * rows:
            return max(rows // 4, self._least)
        return texts

    def _most(self, length):
        """Returns how many texts one call of this length reads at most.

        That is a power of four, as its rows are: the rows beyond its texts cost as much.
        """
        texts = max(self._tokens_per_call // length, 1)
        return max(4 ** ((texts.bit_length() - 1) // 2), self._least)

    def _next_chunk(self, request):
        if self._cache is None:
            return next_chunk(request.read, request.unread, None, longest=self.longest)
        whole = len(request.plan.tokens) - 1
        if request.shares and (request.cut is None or request.cut <= request.read):
            cut = self._cache.cut(request.plan.tokens, request.read, whole)
            request.cut = cut if cut < whole else None
        until = whole if request.cut is None else request.cut
        where = request.read, until - request.read, self._cache.every, self._cache.far
        count, length = next_chunk(*where)
        if self.longest is None or length <= self.longest:
            return count, length
        # Calls of other lengths round otherwise, which texts that share it would not get alone.
        request.shares = request.shares and not self._cache.exact
        return next_chunk(*where, self.longest)

    def _look_up(self, request):
        """Goes on from what the cache knows of a request's text, where that is more than was read."""
        tokens = request.plan.tokens
        found = self._cache.find(tokens, len(tokens) - 1, request.read)
        if found is not None:
            length, request.state = found
            self._stats.cached_tokens += length - request.read
            request.cached_tokens += length - request.read
            request.read, request.room = length, prefill.slots_of(request.state)

    def _keep(self, request):
        """Keeps the state of a text that has been read so far, if it is one to be kept."""
        if not request.shares:
            return
        at_end = not request.unread and not self._cache.exact
        if at_end or self._cache.keeps_at(request.read) or request.read == request.cut:
            self._cache.store(request.plan.tokens[: request.read], request.state)

    def _fresh_row(self, tokens):
        capacity = prefill.capacity_for(self._model.config, tokens)
        if capacity not in self._fresh:
            self._fresh[capacity] = fresh_row(self._model, self._params, tokens)
        return self._fresh[capacity]
