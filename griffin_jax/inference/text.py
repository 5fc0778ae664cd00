"""The text of one row as its tokens come in, and the stop strings in it."""

import bisect
from collections.abc import Sequence

from griffin_jax.tokenizer import StreamDecoder


class StoppedText:
    """Text that ends before the first stop string, even where that straddles tokens.

    Attributes:
      text: What the tokens so far decode to, cut before the stop string.
      stopped: A stop string has come up.
    """

    def __init__(self, decoder: StreamDecoder | None, stop: Sequence[str] = ()):
        self.text = ""
        self.stopped = False
        self._decoder = decoder
        self._stop = tuple(stop)
        self._ends = []  # length of the text after each token
        self._emitted = 0

    def add(self, token: int) -> None:
        """Takes the next token."""
        if self._decoder is not None:
            self._append(self._decoder.push([token]))
        self._ends.append(len(self.text))

    def finish(self) -> None:
        """Takes note that no more tokens come."""
        if self._decoder is not None and not self.stopped:
            self._append(self._decoder.flush())
            if self._ends and not self.stopped:
                self._ends[-1] = len(self.text)

    def num_tokens(self) -> int:
        """Returns how many tokens the text is made of: those that begin before its end."""
        if not self.stopped:
            return len(self._ends)
        begins = [0, *self._ends[:-1]]
        return sum(begin < len(self.text) for begin in begins)

    def take(self, finished: bool) -> str:
        """Returns the text since the last call, without what may yet become a stop string."""
        held = 0 if finished or self.stopped else self._possible_stop()
        piece = self.text[self._emitted : len(self.text) - held]
        self._emitted += len(piece)
        return piece

    def num_taken(self) -> int:
        """How many tokens have been taken, as all of their text has."""
        return bisect.bisect_right(self._ends, self._emitted, hi=self.num_tokens())

    def _append(self, piece):
        searched = len(self.text)
        self.text += piece
        found = [
            at
            for stop in self._stop
            if (at := self.text.find(stop, max(searched - len(stop) + 1, 0))) >= 0
        ]
        if found:
            self.text = self.text[: min(found)]
            self.stopped = True

    def _possible_stop(self):
        """Returns the length of the longest end of the text that begins a stop string."""
        return max(
            (
                length
                for stop in self._stop
                for length in range(1, min(len(stop), len(self.text) + 1))
                if self.text.endswith(stop[:length])
            ),
            default=0,
        )
