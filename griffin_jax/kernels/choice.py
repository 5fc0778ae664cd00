"""Which kernel serves an operation: decided here, by platform and shape."""

import contextlib
from collections.abc import Iterator

import jax
from absl import logging

_PLATFORMS = ("gpu", "tpu", "cpu")
_RECORDS: list[dict[str, tuple[str, ...]]] = []


def choose(operation: str, serves: dict[str, str | None], forced: str | None = None) -> str:
    """Picks a kernel.

    Args:
      operation: The operation's name, for messages.
      serves: Kernel names in order of preference, each with None if it serves the shapes at hand,
        or else the reason why it does not. A name that ends in _gpu, _tpu or _cpu serves that
        platform alone; the others serve all.
      forced: The caller's own choice; None leaves it to platform and shape.

    Raises:
      ValueError: the forced kernel is unknown or does not serve.
    """
    platform = jax.default_backend()
    for record in _RECORDS:
        record[operation] = tuple(serves)

    def refusal(name):
        for kind in _PLATFORMS:
            if name.endswith(f"_{kind}") and kind != platform:
                return f"it needs a {kind.upper()}, and this is a {platform.upper()}"
        return serves[name]

    if forced is not None:
        if forced not in serves:
            raise ValueError(f"{operation}: no kernel {forced!r}; there are {', '.join(serves)}")
        if (reason := refusal(forced)) is not None:
            raise ValueError(f"{operation}: kernel {forced!r} cannot serve: {reason}")
        return forced
    name = next(name for name in serves if refusal(name) is None)
    logging.vlog(1, "%s is served by kernel %r", operation, name)
    return name


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, tuple[str, ...]]]:
    """Collects the kernels that there are for each operation traced inside of the block."""
    record: dict[str, tuple[str, ...]] = {}
    _RECORDS.append(record)
    try:
        yield record
    finally:
        _RECORDS.remove(record)
