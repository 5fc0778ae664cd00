"""Speculation: when drafts are worth a call over several tokens, and what it takes to make them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from griffin_jax.fields import check_fields, field
from griffin_jax.inference.decode import Rows
from griffin_jax.inference.drafting import Drafter, Lookup, Memory, SmallModel
from griffin_jax.inference.request import Request
from griffin_jax.inference.verification import draw_drafted
from griffin_jax.models import Griffin
from griffin_jax.sharding import jit_on_mesh

ROUNDS = 4  # calls of the model in a dispatch at most
# What a call over a draft costs before it was measured, in steps of one token.
_GUESSED_COST = 1.5
# Drafts begin where they spare so much of the time, and end where they spare none.
_MARGIN = 1.1
# A small model that did not pay is tried again after so many tokens, then after twice as many.
_FIRST_REST = 256


@dataclasses.dataclass(frozen=True)
class Speculation:
    """How texts are drawn several tokens at a time, which changes no text: only how fast it comes.

    Attributes:
      tokens: The most tokens of a draft.
      draft: A smaller model of the same vocabulary, a `LanguageModel`, which drafts; None drafts by
        what followed in the text before, where its last tokens stood before.
      least: Without a model: so many last tokens must have stood there.
      most: So many are compared.
      room: So many last tokens of a text are looked through, or read by the smaller model.
      always: Draft also where it does not pay, as measured.

    Raises:
      ValueError: a value is out of its range.
    """

    tokens: int = field(7, at_least=1, at_most=63)
    draft: Any = None
    least: int = field(2, at_least=1, at_most=16)
    most: int = field(4, at_least=1, at_most=16)
    room: int = field(8192, at_least=32, at_most=2**17)
    always: bool = False

    def __post_init__(self):
        check_fields(self)
        if self.least > self.most:
            raise ValueError(f"least must be at most most={self.most}, got {self.least}")


class Speculator:
    """Makes drafts for the rows of a pool where they pay.

    Attributes:
      drafter: Makes them on the device.
      count: Tokens of a draft.
      params: Those of the drafter, an empty dict where it has none.
      memory: What the drafter knows of all rows; None where it is behind the texts.
      cost: What a call over a draft takes, in steps of one token.
    """

    def __init__(self, config: Speculation, drafter: Drafter, params: Any, beside: Any = None):
        """Begins without a memory.

        Args:
          config: What the user says.
          drafter: Makes the drafts.
          params: Those of the drafter.
          beside: Arrays that say where its own belong; `params` by default.
        """
        self.drafter, self.count, self.params = drafter, config.tokens, params
        self._beside = beside or params
        self.memory: Memory | None = None
        self._always = config.always
        self.cost = _GUESSED_COST
        self._on = True
        self._paid = float("inf")  # tokens of a call, where no history tells
        self._rest, self._rested = _FIRST_REST, 0

    def follow(self, mesh: Any, slot: int, request: Request) -> None:
        """Begins to follow the text of a request that has got a row."""
        request.history = self.drafter.history(request.plan.tokens, self.count)
        if self.memory is not None:
            self._enter(mesh, slot, request)

    def wants(self, requests: Sequence[Request]) -> bool:
        """Returns whether the next burst of these rows should be one of drafts."""
        if self._always:
            return True
        histories = [request.history for request in requests if request.history is not None]
        expected = self._paid
        if histories:
            expected = float(np.mean([history.tokens_per_call for history in histories]))
        self._on = expected > self.cost * (1.0 if self._on else _MARGIN)
        return self._on

    def begins(self, mesh: Any, rows: Sequence[Request | None], guided: bool) -> bool:
        """Returns whether the next burst is one of drafts; where it is, `memory` is there.

        Args:
          mesh: That of the rows.
          rows: The request of each row, at least one.
          guided: Whether a grammar must see each token.
        """
        active = [request for request in rows if request is not None]
        wants = not guided and self.wants(active)
        if wants and self.memory is None and all(r.dispatched == r.num_tokens for r in active):
            self.know(mesh, rows)
        if not wants:
            self.memory = None  # it does not see what is drawn now
        return wants and self.memory is not None

    def draw(
        self, mesh: Any, model: Griffin, rounds: int, how: Any, rows: Rows, rest: Any
    ) -> tuple[Rows, tuple[jax.Array, ...], jax.Array]:
        """Dispatches a burst of drafts.

        Args:
          mesh: That of the rows.
          model: The model.
          rounds: Calls of it at most.
          how: Needs, methods and params, as `draw_drafted` takes them.
          rows: The pool, which is donated.
          rest: What `draw_drafted` takes behind the memory.

        Returns:
          The rows after, and what `draw_drafted` returns of what was drawn.
        """
        needs, methods, params = how
        rows, self.memory, drawn, drafted = draw_drafted.on(
            mesh,
            model,
            self.drafter,
            self.count,
            rounds,
            needs,
            methods,
            params,
            self.params,
            rows,
            self.memory,
            *rest,
        )
        return rows, drawn, drafted

    def know(self, mesh: Any, requests: Sequence[Request | None]) -> None:
        """Makes the memory of all rows, of which the host knows every token that was drawn."""
        self.memory = self.drafter.empty(self._beside, len(requests))
        for slot, request in enumerate(requests):
            if request is not None:
                self._enter(mesh, slot, request)

    def take(self, mesh: Any, index: np.ndarray) -> None:
        """Makes the memory one of other rows."""
        if self.memory is not None:
            self.memory = _take.on(mesh, self.drafter, self.memory, index)

    def learn(self, drawn: int, calls: int) -> None:
        """Takes how many tokens of a row were drawn in so many calls."""
        if calls:
            before = drawn / calls if self._paid == float("inf") else self._paid
            self._paid = before + 0.2 * (drawn / calls - before)

    def rest(self, drawn: int) -> None:
        """Takes note of so many tokens that were drawn without a draft."""
        if self._on:
            return
        self._rested += drawn
        if self._rested >= self._rest:
            self._rest, self._rested, self._paid = 2 * self._rest, 0, float("inf")

    def _enter(self, mesh, slot, request):
        entry = self.drafter.entry(self.params, request.text_so_far())
        self.memory = _enter.on(mesh, self.drafter, self.memory, np.int32(slot), entry)


@functools.partial(jit_on_mesh, static_argnames="drafter", donate_argnames="memory")
def _enter(drafter, memory, slot, entry):
    return drafter.enter(memory, slot, entry)


@functools.partial(jit_on_mesh, static_argnames="drafter")
def _take(drafter, memory, index):
    return drafter.take(memory, index)


def speculator_of(
    config: Speculation | bool | None, model: Griffin, params: dict[str, Any]
) -> Speculator | None:
    """Returns what makes the drafts of an engine; None for none.

    Args:
      config: What the user says; True for the defaults.
      model: The engine's own model.
      params: Its parameters.

    Raises:
      ValueError: the config is none, or its model does not suit this one.
    """
    if config is None or config is False:
        return None
    config = Speculation() if config is True else config
    if not isinstance(config, Speculation):
        raise ValueError(f"speculate must be True, False or a Speculation, got {config!r:.60}")
    small = config.draft
    if small is None:
        return Speculator(config, Lookup(config.least, config.most, config.room), {}, params)
    if not isinstance(getattr(small, "model", None), Griffin):
        raise ValueError(f"draft must be a LanguageModel, got {small!r:.60}")
    if small.config.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"the draft model has {small.config.vocab_size} tokens and the model "
            f"{model.config.vocab_size}; they must share one vocabulary"
        )
    if small.config.attention_window is None:
        raise ValueError("the draft model must have an attention window: its rings must not grow")
    return Speculator(config, SmallModel(small.model, config.room), small.decoding_params)
