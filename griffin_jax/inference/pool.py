"""The rows of the device: which request each belongs to, and what is drawn in them."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from griffin_jax.inference import prefill
from griffin_jax.inference.decode import (
    Rows,
    draw_burst,
    empty_rows,
    entry_of,
    insert_row,
    leave,
    take,
)
from griffin_jax.inference.dispatched import Burst
from griffin_jax.inference.drawing import IN_PROMPT
from griffin_jax.inference.grammar import words_of
from griffin_jax.inference.pace import Pace
from griffin_jax.inference.request import Request
from griffin_jax.inference.row_programs import RowPrograms
from griffin_jax.inference.row_states import nbytes
from griffin_jax.inference.sampling import SamplingMethod
from griffin_jax.inference.speculation import ROUNDS, Speculator
from griffin_jax.inference.stats import EngineStats
from griffin_jax.models import Griffin
from griffin_jax.sharding import mesh_of_all

# A pool gets smaller where its rows have so many bursts to go: each size is a program of its own.
_BURSTS_WORTH_A_PROGRAM = 4
_ALL = 0xFFFFFFFF  # of a packed mask


class Pool:
    """Rows that are drawn together, as many as a power of two that holds those in use.

    A step costs the device as much as it has rows, so there are no more than needed: rows that
    become free are taken by the next request, and the pool grows and shrinks as a copy.

    Attributes:
      slots: How many rows there are at most.
      requests: The request of each row; None where a row is free.
      keeps_states: Whether a request keeps the state of its row when it leaves, asked for or not.
      programs: Which program runs the rows.
    """

    def __init__(
        self,
        model: Griffin,
        params: dict,
        stats: EngineStats,
        slots: int,
        burst: int,
        seconds: float | None,
        speculator: Speculator | None = None,
    ):
        self.slots = slots
        self.keeps_states = False
        self.programs = RowPrograms(slots, params)
        self.requests: list[Request | None] = []
        self.methods: list[SamplingMethod] = []
        self._model, self._params, self._stats = model, params, stats
        self._mesh = mesh_of_all(params)
        self._burst = burst
        self._speculator = speculator
        self._short = -(-burst // 2)
        self._pace = Pace(burst if seconds is None else self._short, seconds)
        self._draft_pace = Pace(min(ROUNDS, burst), seconds)
        self._entered = False
        self._arrived = 0.0
        self._rows: Rows | None = None
        self._room = 0
        self._no_masks: jax.Array | None = None  # those of rows without a grammar

    @property
    def active(self) -> list[Request]:
        """The requests that have a row."""
        return [request for request in self.requests if request is not None]

    @property
    def free(self) -> int:
        """How many more requests there is place for."""
        return self.slots - len(self.active)

    @property
    def must_see(self) -> bool:
        """Whether the host must have seen all that was drawn before the next burst."""
        if self.guided:
            return True
        behind = self._speculator is not None and self._speculator.memory is None
        return behind and bool(self.active) and self._speculator.wants(self.active)

    @property
    def guided(self) -> bool:
        """Whether a grammar must see what was drawn before the next step.

        All rows then go step by step together: a burst in which such rows rest costs the device as
        much, and they would fall behind.
        """
        return any(request.mask is not None for request in self.active)

    @property
    def nbytes(self) -> int:
        """What the states of the rows take on the device."""
        rows = self._rows
        return 0 if rows is None else nbytes(rows.state)

    @property
    def is_whole(self) -> bool:
        """Whether the rows are there still, also after a program that takes them has failed."""
        return self._rows is None or not any(x.is_deleted() for x in jax.tree.leaves(self._rows))

    def admit(self, request: Request, expected: int = 1) -> None:
        """Gives a row to a request whose prompt has been read.

        Args:
          request: The request.
          expected: How many are about to be admitted, this one included.
        """
        plan, vocab_size = request.plan, self._model.config.vocab_size
        self.programs.serve(plan.needs, alone=not self.active)
        if None not in self.requests:
            self._resize(len(self.active) + expected)
        elif self.programs.for_everything and len(self.requests) < self.programs.size_for(1):
            self._resize(1)
        self._widen()
        slot = self.requests.index(None)
        self._make_room(request.room)
        entry = entry_of(
            plan.tokens[-1],
            plan.max_new_tokens,
            plan.min_tokens,
            plan.key,
            plan.stop_ids,
            plan.settings(request.method),
        )
        state = prefill.with_room(self._model, request.state, self._room)
        entry = dataclasses.replace(entry, state=state)
        if self._rows.counts is not None:
            counts = np.zeros(vocab_size, np.int32)
            if plan.needs.penalties:
                counts[list(plan.tokens)] = IN_PROMPT
            entry = dataclasses.replace(entry, counts=counts)
        if self._rows.bias is not None:
            entry = dataclasses.replace(entry, bias=plan.bias(vocab_size))
        with self._stats.dispatching():
            self._rows = insert_row.on(self._mesh, self._rows, np.int32(slot), entry)
        self.requests[slot] = request
        if self._speculator is not None:
            self._speculator.follow(self._mesh, slot, request)
        keep = plan.keeps_context and plan.stop
        request.after_prompt = request.state if keep else None
        request.state = None
        self._entered = True

    def draw(self, limit: int | None = None, others: bool = False) -> Burst | None:
        """Dispatches a burst of all rows in use; None where there are none.

        Args:
          limit: Steps at most.
          others: Whether there are texts that have no row yet.
        """
        self._release_dispatched()
        active = self.active
        if not active:
            if self._rows is not None and self._model.config.attention_window is None:
                self.clear()  # slots that texts outgrew
            return None
        self._shrink(active)
        speculator = self._speculator
        drafts = speculator is not None and speculator.begins(
            self._mesh, self.requests, self.guided
        )
        left = [request.plan.max_new_tokens - request.dispatched for request in active]
        steps = 1 if self.guided else min(self._next_steps(drafts, left, others), max(left))
        steps = min(steps, limit or steps)
        ahead = steps
        if speculator is not None:
            # How much a burst of drafts has drawn is not known while it is under way.
            ahead += 2 * ROUNDS * (1 + speculator.count)
        self._make_room(max(len(r.plan.tokens) + r.dispatched for r in active) + ahead)
        wanted = np.array([request is not None for request in self.requests])
        methods = tuple(self.methods) if any(r.method >= 0 for r in active) else ()
        how = self.programs.needs, methods, self._params
        rest = wanted, np.int32(steps), self._masks() if self.programs.needs.masks else None
        drafted = None
        with self._stats.dispatching():
            if drafts:
                rounds = min(ROUNDS, self._burst)
                self._rows, drawn, drafted = speculator.draw(
                    self._mesh, self._model, rounds, how, self._rows, rest
                )
            else:
                self._rows, drawn = draw_burst.on(
                    self._mesh, self._model, self._burst, *how, self._rows, *rest
                )
        self._stats.count_burst(steps, len(self.requests))
        burst = Burst(tuple(self.requests), steps, drawn, time.monotonic(), drafted)
        for request in active:
            request.dispatched += steps  # at least; `give` counts what more was drawn
        self._release_dispatched()
        return burst

    def fetch(self, burst: Burst, since: float) -> tuple[np.ndarray, ...]:
        """Waits for a burst; returns what was drawn.

        Args:
          burst: The burst length of `draw`.
          since: When the turn of the engine began; the time before is the caller's own.
        """
        begin = time.monotonic()
        drawn, burst.drafted = jax.device_get((burst.drawn, burst.drafted))
        now = time.monotonic()
        self._stats.wait_seconds += now - begin
        self._learn(burst, since, now)
        return drawn

    def give(self, burst: Burst, drawn: tuple[np.ndarray, ...]) -> Iterator[Request]:
        """Gives each request what was drawn for it; yields those that end by it."""
        tokens, logprobs, *tops = drawn
        wanted = np.array([r is not None and not r.ended for r in burst.requests])
        own = (tokens >= 0) & wanted[:, None]
        ends = np.cumsum(own.sum(axis=1)).tolist()
        drawn_tokens, chances = tokens[own], logprobs[own]
        # What is drawn is sound as a rule: only if not is each row asked for its own error.
        vocab_size = self._model.config.vocab_size
        sound = bool((drawn_tokens < vocab_size).all() and np.isfinite(chances).all())
        drawn_tokens, chances = drawn_tokens.tolist(), chances.tolist()
        for slot, (request, begin, end) in enumerate(
            zip(burst.requests, [0, *ends], ends, strict=False)
        ):
            if request is None or request.ended:
                continue
            count = request.num_tokens
            pairs = _pairs(tops, slot, own[slot])
            self._give(request, drawn_tokens[begin:end], chances[begin:end], pairs, sound)
            if burst.drafted is not None:
                self._count_drafts(request, burst, slot, end - begin)
            elif self._speculator is not None:
                self._speculator.rest(request.num_tokens - count)
            if request.ended:
                if request in self.requests:
                    self.release(request)
                yield request

    def release(self, request: Request) -> None:
        """Frees the row of a request; what the device still draws there is dropped."""
        slot = self.requests.index(request)
        if request.plan.keeps_context or self.keeps_states:
            request.state = leave.on(self._mesh, self._rows.state, np.int32(slot))
        self.requests[slot] = None

    def clear(self) -> None:
        """Forgets all rows."""
        self._rows, self._room, self.requests = None, 0, []
        if self._speculator is not None:
            self._speculator.memory = None

    def _give(self, request, tokens, logprobs, tops, sound):
        if not sound or request.mask is not None:
            try:
                request.check(tokens, logprobs, self._model.config.vocab_size, self._model.dtype)
            except ValueError as error:
                request.fail(error)
                return
        before = request.num_tokens
        request.add(tokens, logprobs, tops)
        self._stats.drawn_tokens += request.num_tokens - before
        if request.history is not None:
            request.history.add(tokens)
        if request.ended or request.plan.grammar is None or not tokens:
            return
        try:
            request.ask_grammar(self._model.config.vocab_size)
            if request.is_complete:
                request.end("stop")
        except Exception as error:
            request.fail(error)

    def _masks(self):
        """Returns what each row's grammar allows in the next step, packed."""
        size = len(self.requests), words_of(self._model.config.vocab_size)
        if not self.guided:
            if self._no_masks is None or self._no_masks.shape != size:
                masks = np.full(size, _ALL, np.uint32)
                self._no_masks = prefill.put(self._params, masks)
            return self._no_masks
        masks = np.full(size, _ALL, np.uint32)
        for slot, request in enumerate(self.requests):
            if request is not None and request.mask is not None:
                masks[slot] = request.mask
        return prefill.put(self._params, masks)

    def _release_dispatched(self):
        """Frees the rows of requests whose last token is under way, for others to have."""
        for request in self.active:
            if request.dispatched >= request.plan.max_new_tokens:
                self.release(request)

    def _count_drafts(self, request, burst, slot, drawn):
        """Takes note of what drafts of a row have spared, in the calls in which it took part."""
        drafts = burst.drafted[slot][burst.drafted[slot] >= 0]
        request.dispatched += max(drawn - burst.steps, 0)
        self._stats.count_drafts(len(drafts), int(drafts.sum()), drawn - len(drafts))
        self._speculator.learn(drawn, len(drafts))

    def _next_steps(self, drafts, left, others):
        pace = self._draft_pace if drafts else self._pace
        # The first token of a text comes at once.
        steps = pace.first() if self._entered else pace.steps
        self._entered = False
        if drafts:
            return steps
        # To hand a burst over costs the same whatever its length. It is short where a text waits for
        # its end, where the pool could be smaller soon, or where drafts could begin to pay after it.
        staying = sum(count > self._short for count in left)
        needed = self.programs.size_for(staying) == len(self.requests)
        long = needed and not others and self._speculator is None
        return steps if long else min(steps, self._short)

    def _learn(self, burst, since, now):
        """Learns from the time that a burst took."""
        took = max(now - max(since, burst.begun, self._arrived), 1e-9)
        self._arrived = now
        pace = self._pace if burst.drafted is None else self._draft_pace
        pace.learn(burst.steps, took)
        costs: Any = self._draft_pace.step_seconds, self._pace.step_seconds
        # Several processes must decide alike, which no clock does.
        if self._speculator is not None and None not in costs and jax.process_count() == 1:
            self._speculator.cost = costs[0] / costs[1]

    def _widen(self):
        """Makes the wide arrays that the program needs, and lets go of others."""
        shape = (len(self.requests), self._model.config.vocab_size)

        def wide(needed, array, dtype):
            if needed and array is None:
                zeros = np.zeros(shape, dtype)
                return prefill.put(self._params, zeros, "batch", "vocabulary")
            return array if needed else None

        self._rows = dataclasses.replace(
            self._rows,
            counts=wide(self.programs.needs.penalties, self._rows.counts, np.int32),
            bias=wide(self.programs.needs.bias, self._rows.bias, np.float32),
        )

    def _make_room(self, tokens):
        """Makes slots for so many tokens in every row, under an unbounded window."""
        self._room = max(self._room, tokens)
        state = prefill.with_room(self._model, self._rows.state, self._room)
        if state is not self._rows.state:
            self._rows = dataclasses.replace(self._rows, state=state)

    def _shrink(self, active):
        size = self.programs.size_for(len(active))
        left = max(r.plan.max_new_tokens - r.dispatched for r in active)
        if 2 * size <= len(self.requests) and left > _BURSTS_WORTH_A_PROGRAM * self._short:
            self._resize(len(active))

    def _resize(self, rows):
        """Makes a pool of at least so many rows out of those in use."""
        size = self.programs.size_for(rows)
        used = [slot for slot, request in enumerate(self.requests) if request is not None]
        if self._rows is None:
            self._rows = empty_rows(self._model, self._params, size, self._room)
        else:
            index = np.zeros(size, np.int32)
            index[: len(used)] = used
            valid = np.arange(size) < len(used)
            self._rows = take.on(self._mesh, self._rows, index, valid)
            if self._speculator is not None:
                self._speculator.take(self._mesh, index)
        self.requests = [self.requests[slot] for slot in used] + [None] * (size - len(used))


def _pairs(tops, slot, own):
    """Returns for each of a row's `own` steps the most likely tokens, with their
    log-probabilities.
    """
    if not tops:
        return None
    tokens, values = (array[slot, own].tolist() for array in tops)
    return [list(zip(*step, strict=True)) for step in zip(tokens, values, strict=True)]
