"""Drafts: how a text may go on, guessed at little cost, for the model to check in one call."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from griffin_jax.devices import replicate
from griffin_jax.inference import prefill
from griffin_jax.inference.decode import Rows, draw
from griffin_jax.inference.drawing import Needs
from griffin_jax.inference.row_states import fresh_row, per_row, read_rows, with_row
from griffin_jax.models import Griffin
from griffin_jax.sharding.layouts import constrain_state

Memory = Any  # what a drafter knows of the rows of a pool: a pytree


class History:
    """What drafts by looking up would have spared of a text, had they been made; on the host.

    Attributes:
      tokens_per_call: How many tokens a call would have drawn of late.
    """

    _WEIGHT = 0.9  # of the calls before, in the average

    def __init__(self, lookup: "Lookup", tokens: Sequence[int], count: int):
        self.tokens_per_call = 1.0
        self._lookup, self._count = lookup, count
        self._text: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}
        self._draft: list[int] = []  # that is left of the one that is being followed
        self._of_this_call = 0
        for token in tokens[-lookup.room :]:
            self._remember(token)

    def add(self, tokens: Sequence[int]) -> int:
        """Takes what was drawn next; returns how many calls would have ended in it."""
        calls = 0
        for token in tokens:
            self._of_this_call += 1
            agrees = bool(self._draft) and self._draft.pop(0) == token
            self._remember(token)
            if not agrees:
                share = self._WEIGHT * (self.tokens_per_call - self._of_this_call)
                self.tokens_per_call = self._of_this_call + share
                self._of_this_call = 0
                self._draft = self._guess()
                calls += 1
            elif not self._draft:
                # The last one of a draft is followed by one more of the same call.
                self._draft = [-1]
        return calls

    def _remember(self, token):
        """Adds a token, and says of the tokens before it that this one follows."""
        text = self._text
        for size in range(self._lookup.least, self._lookup.most + 1):
            if len(text) >= size:
                self._places[tuple(text[-size:])] = len(text)
        text.append(token)

    def _guess(self):
        for size in range(self._lookup.most, self._lookup.least - 1, -1):
            begin = self._places.get(tuple(self._text[-size:])) if len(self._text) >= size else None
            if begin is not None:
                between = len(self._text) - begin
                return [self._text[begin + i % between] for i in range(self._count)]
        return []


class Drafter(Protocol):
    """Guesses how rows go on. A guess decides what is computed, never what is drawn.

    It is a hashable object and part of the compiled program. What it knows of the rows, its memory,
    is an argument and a result of the methods that are traced: all but the first three.
    """

    def history(self, tokens: Sequence[int], count: int) -> History | None:
        """Returns what tells of a text, `tokens` so far, how much drafts of `count` tokens would spare;
        None where only calls can tell.
        """

    def empty(self, params: Any, size: int) -> Memory:
        """Returns the memory of so many rows that belong to no text."""

    def entry(self, params: Any, tokens: Sequence[int]) -> Memory:
        """Returns the memory of one row, whose text so far is `tokens`."""

    def enter(self, memory: Memory, slot: jax.Array, entry: Memory) -> Memory:
        """Returns the memory with that of the row `slot` replaced."""

    def take(self, memory: Memory, index: jax.Array) -> Memory:
        """Returns the memory of the rows `index`, int32[B']."""

    def propose(
        self, params: Any, memory: Memory, rows: Rows, needs: Needs, count: int
    ) -> tuple[jax.Array, jax.Array]:
        """Returns what may follow each row's last token, int32[B, count], and how many of those
        do.
        """
        ...

    def advance(
        self, params: Any, memory: Memory, read: jax.Array, drawn: jax.Array, kept: jax.Array
    ) -> Memory:
        """Returns the memory after a call of the model.

        Args:
          params: As for `propose`.
          memory: The memory before the call.
          read: int32[B, T], what the model read: each row's last token, then its draft.
          drawn: int32[B, T], what was drawn after each of them.
          kept: int32[B], how many of both count.
        """


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Goes on as the text did where its last tokens stood before: prompt lookup.

    Of all such places it takes those before which most tokens agree, and of these the last. What lies
    between that and the end may repeat.

    Attributes:
      least: So many last tokens must have stood there.
      most: So many are compared.
      room: So many tokens of the text are known, the last ones.
    """

    least: int = 2
    most: int = 4
    room: int = 8192

    def history(self, tokens: Sequence[int], count: int) -> History:
        """See `Drafter`."""
        return History(self, tokens, count)

    def empty(self, params: Any, size: int) -> Memory:
        """Returns texts, int32[B, room], whose token p lies in slot p % room; and lengths, int32[B]."""
        text, length = np.full((size, self.room), -1, np.int32), np.zeros(size, np.int32)
        return prefill.put(params, text), prefill.put(params, length)

    def entry(self, params: Any, tokens: Sequence[int]) -> Memory:
        """See `Drafter`."""
        del params
        text = np.full(self.room, -1, np.int32)
        begin = max(len(tokens) - self.room, 0)
        text[np.arange(begin, len(tokens)) % self.room] = tokens[begin:]
        return text, np.int32(len(tokens))

    def enter(self, memory: Memory, slot: jax.Array, entry: Memory) -> Memory:
        """See `Drafter`."""
        return replicate(jax.tree.map(lambda all, one: all.at[slot].set(one), memory, entry))

    def take(self, memory: Memory, index: jax.Array) -> Memory:
        """See `Drafter`."""
        return replicate(jax.tree.map(lambda x: x[index], memory))

    def propose(
        self, params: Any, memory: Memory, rows: Rows, needs: Needs, count: int
    ) -> tuple[jax.Array, jax.Array]:
        """See `Drafter`."""
        del params, rows, needs
        text, length = memory
        last = (length - 1)[:, None]
        slots = jnp.arange(self.room, dtype=jnp.int32)[None]
        place = last - (last - slots) % self.room  # of the token in each slot
        agrees = place < last
        agreed = jnp.zeros(text.shape, jnp.int32)
        for back in range(self.most):
            own = jnp.take_along_axis(text, (last - back) % self.room, axis=1)
            known = place - back > jnp.maximum(last - self.room, -1)
            agrees &= known & (jnp.roll(text, back, axis=1) == own)
            agreed += agrees
        rank = agreed * self.room + place - last + self.room
        best = jnp.argmax(jnp.where(agreed >= self.least, rank, -1), axis=1)[:, None]
        found = jnp.take_along_axis(agreed, best, axis=1)[:, 0] >= self.least
        place = jnp.take_along_axis(place, best, axis=1)
        ahead = jnp.arange(count, dtype=jnp.int32)[None] % jnp.maximum(last - place, 1)
        drafts = jnp.take_along_axis(text, (place + 1 + ahead) % self.room, axis=1)
        return drafts, jnp.where(found, count, 0)

    def advance(
        self, params: Any, memory: Memory, read: jax.Array, drawn: jax.Array, kept: jax.Array
    ) -> Memory:
        """See `Drafter`."""
        del params, read
        text, length = memory
        ahead = jnp.arange(drawn.shape[1], dtype=jnp.int32)[None]
        slots = jnp.where(ahead < kept[:, None], (length[:, None] + ahead) % self.room, self.room)
        batch = jnp.arange(len(text), dtype=jnp.int32)[:, None]
        return replicate((text.at[batch, slots].set(drawn, mode="drop"), length + kept))


@dataclasses.dataclass(frozen=True)
class SmallModel:
    """Goes on as a smaller model would, which draws by the row's own settings and random stream.

    Drawn with the same noise, its token is the one that the large model draws more often than
    chance would have it.

    Attributes:
      model: The smaller model, of the same vocabulary.
      reads: It reads at most so many last tokens of a text before it guesses.
    """

    model: Griffin
    reads: int = 2048

    def history(self, tokens: Sequence[int], count: int) -> None:
        """See `Drafter`."""

    def empty(self, params: Any, size: int) -> Memory:
        """Returns the model's state before each row's last token."""
        return prefill.fresh_state(self.model, params, size, 1)

    def entry(self, params: Any, tokens: Sequence[int]) -> Memory:
        """See `Drafter`."""
        tokens = tokens[-self.reads - 1 : -1]
        state = fresh_row(self.model, params, 1)
        for length in prefill.chunk_lengths(len(tokens), 1):
            part, tokens = tokens[:length], tokens[length:]
            (state,), _ = read_rows(self.model, params, [state], [part], length)
        return state

    def enter(self, memory: Memory, slot: jax.Array, entry: Memory) -> Memory:
        """See `Drafter`."""
        return constrain_state(with_row(memory, slot, entry))

    def take(self, memory: Memory, index: jax.Array) -> Memory:
        """See `Drafter`."""
        return constrain_state(per_row(lambda axis, x: jnp.take(x, index, axis=axis), memory))

    def propose(
        self, params: Any, memory: Memory, rows: Rows, needs: Needs, count: int
    ) -> tuple[jax.Array, jax.Array]:
        """See `Drafter`."""
        needs = needs._replace(penalties=False, masks=False, top=0)
        variables, lengths = {"params": params}, rows.alive.astype(jnp.int32)

        def guess(i, carry):
            token, state, drafts = carry
            x, state = self.model.apply(
                variables, token[:, None], state, lengths=lengths, method="features"
            )
            every: Any = self.model.apply(variables, x, method="logits")
            logits = every[:, 0]
            token, _ = draw(logits, rows.replace(step=rows.step + i), needs)
            return token, state, drafts.at[:, i].set(token)

        drafts = jnp.zeros((len(rows.token), count), jnp.int32)
        *_, drafts = lax.fori_loop(0, count, guess, (rows.token, memory, drafts))
        return drafts, lengths * count

    def advance(
        self, params: Any, memory: Memory, read: jax.Array, drawn: jax.Array, kept: jax.Array
    ) -> Memory:
        """See `Drafter`."""
        del drawn
        variables = {"params": params}
        _, state = self.model.apply(variables, read, memory, lengths=kept, method="features")
        return constrain_state(state)
