"""Our own stack, through the engine that `LanguageModel.sample` uses."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from griffin_jax.benchmarks import memory
from griffin_jax.benchmarks.stacks import Mark, Prompts
from griffin_jax.benchmarks.subject import Subject
from griffin_jax.inference import Context, Engine, Request
from griffin_jax.inference.prefill import capacity_for
from griffin_jax.inference.row_states import fresh_row
from griffin_jax.language_model import LanguageModel


class PlacedRows:
    """Rows that go on from a place that no text was read up to."""

    def __init__(self, engine: Engine, requests: list[Request], most: int | None):
        self._engine, self._requests, self._most = engine, requests, most

    def advance(self, steps: int) -> None:
        """Draws so many tokens in one dispatch, and waits for them."""
        _step(self._engine, steps, settle=True)

    def bursts(self) -> Iterator[None]:
        """Runs to the end; yields whenever a burst has come in, the next one being under way."""
        busy = True
        try:
            while busy:
                before = self._requests[0].num_tokens
                busy = _step(self._engine, self._most)
                if self._requests[0].num_tokens > before:
                    yield
        finally:
            self._engine.settle()


class GriffinStack:
    """See `stacks.Stack`.

    Attributes:
      lm: The model.
      burst: Tokens in one dispatch.
      devices: How many run it.
      copies: See `stacks.Stack`.
    """

    def __init__(
        self,
        subject: Subject,
        seed: int = 0,
        burst: int = 32,
        stack_layers: bool | None = None,
        mesh: jax.sharding.Mesh | None = None,
    ):
        self.lm: LanguageModel
        self.lm, self.about = subject.load(seed, stack_layers, mesh)
        self.about: dict[str, Any] = self.about | {"burst": burst}
        self.burst = burst
        self.devices = 1 if mesh is None else mesh.size
        self.copies = 1 if mesh is None else mesh.size // mesh.shape["model"]

    def warm(self, prompts: Prompts, tokens: int) -> None:
        """See `stacks.Stack`."""
        self.generate(prompts, min(tokens, self.burst + 1), lambda n: None)
        # Under an unbounded window a long text runs in several programs, one for each room.
        begin = len(prompts[0])
        rooms = {capacity_for(self.lm.config, n): None for n in range(begin, begin + tokens + 1)}
        with memory.meeting_limits():
            for room in [*rooms][:-1]:
                self.start_at(room - 1, len(prompts), 1, room).advance(1)

    def generate(self, prompts: Prompts, tokens: int, mark: Mark) -> None:
        """See `stacks.Stack`; marks come at multiples of the burst.

        The first token is drawn alone, then the rest of its burst. From there on the next burst is
        under way while one is received, as in `LanguageModel.sample`.
        """
        with memory.meeting_limits(), self._engine(len(prompts), self.burst) as engine:
            requests = [engine.submit(prompt, tokens) for prompt in prompts]
            while (
                not engine.stats.bursts
            ):  # each call of reading is under way while the next is made
                _step(engine, 1)
            _settle(engine)
            mark(1)
            done = min(self.burst, tokens)
            if done > 1:
                _step(engine, done - 1, settle=True)
                mark(done)
            while done < tokens:
                _step(engine)
                if requests[0].num_tokens > done:
                    done = requests[0].num_tokens
                    mark(done)

    def start_at(
        self,
        position: int,
        batch_size: int,
        tokens: int,
        room: int | None = None,
        *,
        burst: int | None = None,
        most: int | None = None,
        seconds: float | None = None,
    ) -> PlacedRows:
        """Returns rows that go on from a state of zeros which stands at `position`.

        Zeros cost what anything else costs; where the text stood before cannot be told from it.

        Args:
          position: How many tokens the state is taken to have read.
          batch_size: How many rows there are.
          tokens: How many will be drawn.
          room: Slots under an unbounded window, before it makes room itself.
          burst: Tokens that the program has room for, which is compiled for each; `burst` of the
            stack by default.
          most: Tokens in one dispatch of that program; all that it has room for by default.
          seconds: That a dispatch takes at most, as for `Engine`.
        """
        engine = self._engine(batch_size, burst or self.burst, seconds)
        context = context_at(engine, position, room)
        requests = [engine.submit([1], tokens, context=context) for _ in range(batch_size)]
        return PlacedRows(engine, requests, most)

    def peak_bytes(self) -> int | None:
        """See `stacks.Stack`."""
        return memory.peak_bytes()

    def _engine(self, slots, burst, seconds=None):
        return self.lm.engine(slots=slots, burst=burst, seconds=seconds, fill_first=True)


def context_at(engine: Engine, position: int, room: int | None = None) -> Context:
    """Returns a state of zeros that stands at `position`; arguments as for `GriffinStack.start_at`."""
    state = fresh_row(engine.model, engine.params, room or position + 1)
    state = dataclasses.replace(state, position=jnp.full_like(state.position, position))
    return Context(state, (0,) * position, position)


def _step(engine, limit=None, settle=False):
    """`Engine.step`, and `settle` if asked for, with what the device raises in it."""
    busy = engine.step(limit)
    if settle:
        engine.settle()
    _check(engine)
    return busy


def _settle(engine):
    engine.settle()
    _check(engine)


def _check(engine):
    if engine.last_error is not None:
        raise engine.last_error
