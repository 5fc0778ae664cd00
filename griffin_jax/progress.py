"""Progress bars that leave nothing in the way of an error."""

import sys
from typing import Any

from tqdm import tqdm


class Bar(tqdm):
    """A bar of tqdm's on standard error.

    It is shown at a terminal alone, unless `disable` is False, and goes when its block raises, so
    that what an error says stands by itself.
    """

    def __init__(self, *args: Any, disable: bool | None = None, **kwargs: Any):
        closed = sys.stderr is None
        super().__init__(*args, disable=True if closed else disable, **kwargs)

    def __exit__(self, kind, error, traceback) -> None:
        self.leave = self.leave and kind is None
        self.close()
