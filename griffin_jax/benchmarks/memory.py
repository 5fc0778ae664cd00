"""Bytes in use on the device, and what running out of them looks like."""

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None


class OutOfMemory(Exception):
    """The device, or its compiler, says that a program needs more memory than there is."""


def peak_bytes() -> int | None:
    """Returns the most bytes in use so far: on the device, or of this process where that is the
    host.

    It is the whole process's high-water mark and never falls, so a figure of one model needs a
    process of its own. None where there is no telling.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return host_peak_bytes()


def host_peak_bytes() -> int | None:
    """Returns the most bytes of memory that this process has had; None where there is no
    telling.
    """
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def host_bytes() -> int | None:
    """Returns the bytes of memory that this process has now; None where there is no telling."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def limit_bytes() -> int | None:
    """Returns what the process may take of the device's memory; None where there is no telling."""
    stats = jax.local_devices()[0].memory_stats()
    return stats.get("bytes_limit") if stats else None


def tree_bytes(tree) -> int:
    """Returns the bytes of all arrays of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@contextlib.contextmanager
def meeting_limits(*others: type[Exception]) -> Iterator[None]:
    """Makes `OutOfMemory`, one line long, of whatever JAX raises when memory runs out.

    What the failed program held is freed before. `others` are exceptions that mean the same.
    """
    certain = (MemoryError, *others)
    try:
        yield
    except (jax.errors.JaxRuntimeError, *certain) as error:
        text = str(error)
        signs = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")
        if not isinstance(error, certain) and not any(sign in text for sign in signs):
            raise
        line = text.strip().splitlines()[0] if text.strip() else "MemoryError"
    else:
        return
    gc.collect()
    raise OutOfMemory(line[:200])
