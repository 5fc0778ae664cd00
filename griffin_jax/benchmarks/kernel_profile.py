"""Time per kernel, from a trace of JAX's profiler."""

import collections
import dataclasses
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

# As NCCL, XLA and XLA's own kernels for few bytes call them.
_COLLECTIVE = re.compile(
    "nccl|all.?reduce|all.?gather|reduce.?scatter|all.?to.?all|collective", re.IGNORECASE
)
# Lines of a device's plane that hold what ran; the others group or annotate it.
_LINES = ("Stream", "XLA Ops")


@dataclasses.dataclass(frozen=True)
class KernelTime:
    """The time of one kernel in all of its launches.

    Attributes:
      name: As the profiler has it.
      seconds: In all, without kernels that ran inside of it.
      launches: How often it ran.
    """

    name: str
    seconds: float
    launches: int


def profile(call: Callable[[], Any]) -> list[KernelTime]:
    """Runs `call`, which returns arrays, under the profiler; kernels by time, longest first."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        files = list(Path(folder).glob("**/*.xplane.pb"))
        if not files:
            raise ValueError("the profiler wrote no trace; run without the profile")
        return summarize(ProfileData.from_file(str(files[0])))


def summarize(data: ProfileData) -> list[KernelTime]:
    """Returns the kernels of a trace by the time they took, longest first."""
    totals = collections.defaultdict(lambda: [0.0, 0])
    with warnings.catch_warnings():
        # jaxlib makes the types of its iterators when they are first used, and ends the process if
        # that raises: Python 3.12 and later warn of such a type, and a warning may be an error.
        warnings.filterwarnings("ignore", message="builtin type .* has no __module__")
        for line in _device_lines(data):
            for name, nanoseconds in _self_times(line):
                totals[name][0] += nanoseconds / 1e9
                totals[name][1] += 1
    kernels = [KernelTime(name, *total) for name, total in totals.items()]
    return sorted(kernels, key=lambda kernel: -kernel.seconds)


def collectives(kernels: Iterable[KernelTime]) -> KernelTime:
    """Returns what exchanges between devices took together."""
    found = [kernel for kernel in kernels if _COLLECTIVE.search(kernel.name)]
    return KernelTime("collectives", sum(k.seconds for k in found), sum(k.launches for k in found))


def format_profile(kernels: list[KernelTime], per: int = 1, top: int = 40) -> str:
    """Returns a text table of the kernels, with microseconds per `per` (steps, say)."""
    total = sum(kernel.seconds for kernel in kernels)
    lines = [f"{'us':>10} {'share':>6} {'launches':>9}  kernel, per step of {per}"]
    shown = kernels[:top]
    rest = kernels[top:]
    if rest:
        seconds, launches = sum(k.seconds for k in rest), sum(k.launches for k in rest)
        shown = [*shown, KernelTime(f"{len(rest)} more", seconds, launches)]
    for kernel in [*shown, KernelTime("all", total, sum(k.launches for k in kernels))]:
        share = kernel.seconds / total if total else 0.0
        lines.append(
            f"{kernel.seconds / per * 1e6:10.1f} {share:6.1%} {kernel.launches / per:9.2f}"
            f"  {kernel.name}"
        )
    return "\n".join(lines)


def _device_lines(data: ProfileData) -> Iterable[list]:
    devices = [plane for plane in data.planes if plane.name.startswith("/device:")]
    if devices:
        for plane in devices:
            for line in plane.lines:
                if line.name.startswith(_LINES):
                    yield list(line.events)
        return
    for plane in data.planes:  # a CPU's programs run on threads of the host
        if plane.name == "/host:CPU":
            for line in plane.lines:
                yield [event for event in line.events if "hlo_op" in dict(event.stats)]


def _self_times(events: list) -> Iterable[tuple[str, float]]:
    """Returns each event's time without that of the events inside of it."""
    open_events = []  # (end, name, self time)
    done = []
    for event in sorted(events, key=lambda e: (e.start_ns, -e.duration_ns)):
        while open_events and open_events[-1][0] <= event.start_ns:
            done.append(open_events.pop())
        if open_events:
            open_events[-1][2] -= event.duration_ns
        open_events.append([event.start_ns + event.duration_ns, event.name, event.duration_ns])
    return [(name, max(nanoseconds, 0.0)) for _, name, nanoseconds in done + open_events]
