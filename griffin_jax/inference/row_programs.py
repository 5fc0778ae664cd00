"""Which program runs the rows of a pool: for how many rows, and for what they need."""

from collections.abc import Iterable

from griffin_jax.inference import prefill
from griffin_jax.inference.drawing import EVERYTHING, Needs


class RowPrograms:
    """The few programs that serve all rows, as a program costs more to compile than to run too often.

    Attributes:
      slots: How many rows there are at most.
      needs: What the program does that runs now.
      ahead: What those do that were compiled ahead, so that one serves what needs less. Where a row
        needs more, all rows are run by a program for everything, of as many rows as there may be:
        the only other one.
      compiled: Numbers of rows whose programs were compiled ahead, ascending; none where programs are
        compiled as they are needed. There are no others as long as one of these holds all rows in use.
    """

    def __init__(self, slots: int, params: dict):
        self.slots = slots
        self.needs = Needs()
        self.ahead = Needs()
        self.compiled: tuple[int, ...] = ()
        self._params = params

    @property
    def for_everything(self) -> bool:
        """Whether what runs now is the program for everything."""
        return bool(self.compiled) and self.needs != self.ahead

    def sizes(self, texts: Iterable[int]) -> list[int]:
        """Returns the numbers of rows, ascending, in which these numbers of texts are drawn."""
        return sorted({self._least_for(count) for count in texts})

    def size_for(self, rows: int) -> int:
        """Returns how many rows a pool has in which at least so many are in use."""
        size = self._least_for(self.slots if self.for_everything else rows)
        return next((there for there in self.compiled if there >= size), size)

    def serve(self, needs: Needs, alone: bool) -> None:
        """Has the program serve a row that enters, beside others or alone.

        What rows needed that have left stays until the pool was empty: a program costs more to
        compile than to do too much for a while.
        """
        needs = self.ahead | (needs if alone else self.needs | needs)
        self.needs = EVERYTHING | needs if self.compiled and needs != self.ahead else needs

    def _least_for(self, rows):
        return prefill.batch_size_for(min(rows, self.slots), self._params)
