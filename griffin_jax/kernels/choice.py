"""Which kernel serves an operation: decided here, by platform and shape."""

import contextlib
import functools
import sys
from collections.abc import Iterator

from griffin_jax.devices import PLATFORMS, platform

_RECORDS: list[dict[str, tuple[str, ...]]] = []
_EXCLUDED: list[str] = []

# Say on standard error, once each, which kernel serves which operation; commands set it for
# --verbose.
verbose = False


def choose(operation: str, reasons: dict[str, str | None], forced: str | None = None) -> str:
    """Picks a kernel.

    Args:
      operation: The operation's name, for messages.
      reasons: Kernel names in order of preference, each with the reason why it does not support the
        shapes at hand, or None if it does. A name that ends in _gpu, _tpu or _cpu is of that
        platform alone; the others run on all.
      forced: The caller's own choice; None leaves it to platform and shape.

    Raises:
      ValueError: the forced kernel is unknown, or does not support platform or shape.
    """
    for record in _RECORDS:
        record[operation] = tuple(reasons)
    here = platform()

    def foreign(name):
        kind = next((kind for kind in PLATFORMS if name.endswith(f"_{kind}")), here)
        return kind != here and f"it needs a {kind.upper()}, and this is a {here.upper()}"

    def excluded(name):
        return f"{name} is left out here" if name in _EXCLUDED else None

    def refusal(name):
        return foreign(name) or excluded(name) or reasons[name]

    if forced is not None:
        if forced not in reasons:
            raise ValueError(f"{operation}: no kernel {forced!r}; there are {', '.join(reasons)}")
        if (reason := refusal(forced)) is not None:
            raise ValueError(f"{operation}: kernel {forced!r} cannot serve: {reason}")
        return forced
    name = next(name for name in reasons if refusal(name) is None)
    if verbose:
        others = [x for x in list(reasons)[: list(reasons).index(name)] if not foreign(x)]
        _announce(operation, name, tuple((other, reasons[other]) for other in others))
    return name


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """Leaves kernels of these names out of all choices of programs that are traced in the block."""
    _EXCLUDED.extend(names)
    try:
        yield
    finally:
        for name in names:
            _EXCLUDED.remove(name)


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, tuple[str, ...]]]:
    """Collects the kernels that there are for each operation traced inside of the block."""
    record: dict[str, tuple[str, ...]] = {}
    _RECORDS.append(record)
    try:
        yield record
    finally:
        _RECORDS.remove(record)


@functools.cache
def _announce(operation, name, others):
    reasons = "".join(f"; not {other!r}: {reason}" for other, reason in others)
    print(f"[{operation}: kernel {name!r}{reasons}]", file=sys.stderr)
