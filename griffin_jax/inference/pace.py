"""How many steps a dispatch takes, so that it takes about as long as it is to take."""


class Pace:
    """The pace of one kind of burst.

    Attributes:
      steps: The most steps of the next burst.
      step_seconds: What a step takes, of late; None while that is not known.
    """

    _WEIGHT = 0.7  # of the bursts before, in the average

    def __init__(self, most: int, seconds: float | None):
        """Sets out.

        Args:
          most: Steps of a burst at most.
          seconds: That it is to take, beginning with one step; None for `most` steps always.
        """
        self._most, self._seconds = most, seconds
        self.steps = most if seconds is None else 1
        self.step_seconds: float | None = None
        self._seen = 0

    def first(self) -> int:
        """Returns how many steps there are where the first token of a text is to come at once."""
        return self.steps if self._seconds is None else 1

    def learn(self, steps: int, took: float) -> None:
        """Takes how long a burst of so many steps took; the next one is twice as long at most."""
        self._seen += 1
        if self._seen > 1:  # the first of all is slow for other reasons
            before = took / steps if self.step_seconds is None else self.step_seconds
            self.step_seconds = self._WEIGHT * before + (1 - self._WEIGHT) * took / steps
        if self._seconds is not None:
            most = max(2 * steps, self.steps)
            self.steps = min(max(int(steps * self._seconds / took), 1), most, self._most)
