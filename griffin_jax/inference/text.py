"""The text of one row as its tokens come in, and the stop strings in it."""

import bisect
from collections.abc import Sequence

from griffin_jax.tokenizer import StreamDecoder


class StoppedText:
    """Text that ends before the first stop string, even where that straddles tokens.

    Without stop strings nothing depends on the text, so tokens are decoded when it is asked for:
    that costs less for many at once, and an engine whose readers are elsewhere does not wait for it.

    Attributes:
      stopped: A stop string has come up.
    """

    def __init__(self, decoder: StreamDecoder | None, stop: Sequence[str] = ()):
        self.stopped = False
        self._decoder = decoder
        self._stop = tuple(stop) if decoder is not None else ()
        self._decoded = ""
        self._pending: list[int] = []  # tokens that have not been decoded
        self._count = 0
        self._held_back = False  # tokens have ended, and a part of a character may be left
        self._ends: list[int] = []  # length of the text after each token, under stop strings
        self._emitted = 0

    @property
    def text(self) -> str:
        """What the tokens so far decode to, cut before the stop string."""
        decoder = self._decoder
        if decoder is not None and self._pending:
            pending, self._pending = self._pending, []
            self._decoded += decoder.push(pending)
        if decoder is not None and self._held_back:
            self._held_back = False
            self._decoded += decoder.flush()
        return self._decoded

    def add(self, tokens: Sequence[int]) -> int:
        """Takes the next tokens; returns how many of them there are up to where a stop string ends."""
        decoder = self._decoder
        if decoder is None or not self._stop:
            self._count += len(tokens)
            if decoder is not None:
                self._pending += tokens
            return len(tokens)
        for i, token in enumerate(tokens, 1):
            self._append(decoder.push([token]))
            self._ends.append(len(self._decoded))
            if self.stopped:
                return i
        return len(tokens)

    def finish(self) -> None:
        """Takes note that no more tokens come."""
        decoder = self._decoder
        if decoder is None or not self._stop:
            self._held_back = True
        elif not self.stopped:
            self._append(decoder.flush())
            if self._ends and not self.stopped:
                self._ends[-1] = len(self._decoded)

    def num_tokens(self) -> int:
        """Returns how many tokens the text is made of: those that begin before its end."""
        if not self._stop:
            return self._count
        if not self.stopped:
            return len(self._ends)
        begins = [0, *self._ends[:-1]]
        return sum(begin < len(self._decoded) for begin in begins)

    def take(self, finished: bool) -> str:
        """Returns the text since the last call, without what may yet become a stop string."""
        text = self.text
        held = 0 if finished or self.stopped else self._possible_stop()
        piece = text[self._emitted : len(text) - held]
        self._emitted += len(piece)
        return piece

    def num_taken(self) -> int:
        """How many tokens have been taken, as all of their text has."""
        if not self._stop:
            return self._count - len(self._pending)
        return bisect.bisect_right(self._ends, self._emitted, hi=self.num_tokens())

    def _append(self, piece):
        searched = len(self._decoded)
        self._decoded += piece
        found = [
            at
            for stop in self._stop
            if (at := self._decoded.find(stop, max(searched - len(stop) + 1, 0))) >= 0
        ]
        if found:
            self._decoded = self._decoded[: min(found)]
            self.stopped = True

    def _possible_stop(self):
        """Returns the length of the longest end of the text that begins a stop string."""
        text = self._decoded
        return max(
            (
                length
                for stop in self._stop
                for length in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:length])
            ),
            default=0,
        )
