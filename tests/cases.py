"""Cases of a parametrized test of which a few stand for all in the plain run."""

from collections.abc import Sequence

import pytest


def rest_slow(count: int, cases: Sequence[tuple]) -> list:
    """Returns the cases, those behind the first `count` marked as slow."""
    rest = (pytest.param(*case, marks=pytest.mark.slow) for case in cases[count:])
    return [*cases[:count], *rest]
