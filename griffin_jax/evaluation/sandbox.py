"""Runs programs that a model wrote, each in a process of its own under limits.

A program counts as passed only if it ran to its last line; whatever else happens (an exception, an
early exit, a limit reached) is a failure with a reason, and nothing of it is left behind. What
keeps it in, from outside to inside:

- a process group of its own, killed as a whole when the program ends or its time is over; nothing
  of the environment, an empty scratch directory as working directory and home, removed afterward;
- POSIX limits on processor time, memory, file size, open files and core dumps;
- on Linux a network namespace without interfaces, Landlock (no file is written, made or removed
  outside of the scratch directory) and a seccomp filter (no sockets, no further processes, no
  signals to others, no change of owners, modes, mounts or clocks), each where the kernel allows it;
- a Python audit hook that refuses the same, which is all that there is elsewhere. It stops
  programs that mean no harm, not one that calls native code.

`guarantees()` says which of these hold on this machine. Files stay readable: nothing can be sent,
but a program sees what the user may read. A program that hunts for the evaluator's own secret in
its process's memory can fake success; the score is the model's to spoil, not the machine.

Nothing runs unless the caller or the environment allows it (`GRIFFIN_ALLOW_CODE_EXECUTION=1`).
"""

import contextlib
import functools
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

ALLOW_VARIABLE = "GRIFFIN_ALLOW_CODE_EXECUTION"
_CHILD = Path(__file__).with_name("sandbox_child.py")
_KEPT_OUTPUT = 4096  # bytes of the program's output that an Outcome holds
# NumPy's threads would each reserve memory that the limit counts.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class CodeExecutionRefused(RuntimeError):
    """Model-written programs were to be run without permission."""


@dataclass(frozen=True)
class Limits:
    """The limits of one program.

    Attributes:
      seconds: Wall clock, the start of Python included.
      cpu_seconds: Processor time.
      memory_bytes: Address space.
      file_bytes: The size of each file, standard output included.
      open_files: Files that are open at once.
    """

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20
    open_files: int = 64


@dataclass(frozen=True)
class Outcome:
    """The end of a program.

    Attributes:
      passed: True if it ran to its last line.
      reason: "passed", or why it did not, in one line.
      output: The end of what it wrote to standard output and standard error.
    """

    passed: bool
    reason: str
    output: str


def check_allowed(allow_code_execution: bool = False) -> None:
    """Raises `CodeExecutionRefused` unless the argument or the environment allows running code."""
    if not (allow_code_execution or os.environ.get(ALLOW_VARIABLE) == "1"):
        raise CodeExecutionRefused(
            "running programs that a model wrote is off: pass allow_code_execution=True or set "
            f"{ALLOW_VARIABLE}=1 if this machine may run them"
        )
    if os.name != "posix":
        raise CodeExecutionRefused(
            f"running programs that a model wrote needs Linux or macOS, not {sys.platform}"
        )


def run(
    program: str, limits: Limits | None = None, *, allow_code_execution: bool = False
) -> Outcome:
    """Runs one Python program and says whether it ended well.

    Args:
      program: Its source.
      limits: What it may use; `Limits()` by default.
      allow_code_execution: Allows it, as the environment's GRIFFIN_ALLOW_CODE_EXECUTION=1 does.

    Raises:
      CodeExecutionRefused: neither allows it, or the platform has no sandbox.
    """
    check_allowed(allow_code_execution)
    return _run(program, limits or Limits())[0]


def run_all(
    programs: Sequence[str],
    limits: Limits | None = None,
    *,
    allow_code_execution: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> list[Outcome]:
    """Calls `run` for many programs and returns the outcomes in their order.

    Args:
      programs: Their sources.
      limits: What each may use; `Limits()` by default.
      allow_code_execution: As for `run`.
      workers: Programs that run at once; by default as many as the machine has cores.
      progress: Shows a bar.

    Raises:
      CodeExecutionRefused: as `run`.
    """
    check_allowed(allow_code_execution)
    one = functools.partial(_run, limits=limits or Limits())
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        outcomes = pool.map(one, programs)
        bar = tqdm(outcomes, "programs", len(programs), unit="program", disable=not progress)
        return [outcome for outcome, _ in bar]


@functools.cache
def guarantees() -> dict[str, str]:
    """Returns how this machine keeps a program in: what is restricted -> the mechanism that does
    it.
    """
    outcome, applied = _run("pass", Limits())
    if not outcome.passed:
        raise RuntimeError(f"the sandbox does not run here: {outcome.reason}")
    hook = "Python audit hook only"
    seccomp = "seccomp" in applied
    return {
        "network": "network namespace"
        if "network namespace" in applied
        else ("seccomp" if seccomp else hook),
        "writing files": "Landlock" if "landlock" in applied else hook,
        "processes": "seccomp" if seccomp else "RLIMIT_NPROC and a Python audit hook",
        "memory, time, file size": "POSIX limits",
        "disk": "16 MiB in memory" if "small scratch" in applied else "time alone",
    }


def _run(program: str, limits: Limits) -> tuple[Outcome, list[str]]:
    """Returns the outcome and the names of the kernel's mechanisms that were in force."""
    secret = secrets.token_hex(16)
    scratch = tempfile.mkdtemp(prefix="griffin_program_")
    reader, writer = os.pipe()
    try:
        with tempfile.TemporaryFile() as output:
            process = _start(scratch, writer, output)
            os.close(writer)
            writer = -1
            try:
                _send(process, {"program": program, "secret": secret, "limits": asdict(limits)})
                report, timed_out = _read(reader, limits.seconds)
            finally:
                # The group's leader isn't reaped yet, so its number can't be another's.
                _kill_group(process.pid)
                process.stdin.close()
                code = process.wait()
            size = output.seek(0, os.SEEK_END)
            output.seek(max(0, size - _KEPT_OUTPUT))
            text = output.read().decode("utf-8", "replace")
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
        shutil.rmtree(scratch, ignore_errors=True)
    applied, passed = _understand(report, secret)
    if passed:
        reason = "passed"
    elif size >= limits.file_bytes:
        reason = f"printed more than {limits.file_bytes} bytes"
    elif timed_out:
        reason = f"ran longer than {limits.seconds:g} s"
    else:
        reason = _reason(code, text, limits)
    return Outcome(passed, reason, text), applied


def _start(scratch: str, writer: int, output) -> subprocess.Popen:
    environment = {"PATH": os.defpath, "HOME": scratch, "TMPDIR": scratch, "LANG": "C.UTF-8"}
    return subprocess.Popen(
        [sys.executable, "-I", "-B", str(_CHILD), str(writer), scratch],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=scratch,
        env=environment | _ONE_THREAD,
        pass_fds=(writer,),
        start_new_session=True,
    )


def _send(process: subprocess.Popen, job: dict) -> None:
    with contextlib.suppress(BrokenPipeError):  # The exit code tells why it died so early.
        process.stdin.write(json.dumps(job).encode())
        process.stdin.close()


def _read(reader: int, seconds: float) -> tuple[bytes, bool]:
    """Returns what came through the pipe until all of its writers were gone, and whether time ran
    out.
    """
    deadline, report = time.monotonic() + seconds, b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([reader], [], [], left)[0]:
            break
        if not (piece := os.read(reader, 4096)):
            return report, False
        report = (report + piece)[:4096]
    return report, True


def _kill_group(leader: int) -> None:
    # macOS refuses for a group of dead ones.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _understand(report: bytes, secret: str) -> tuple[list[str], bool]:
    lines = report.decode("utf-8", "replace").splitlines()
    applied = lines[0].split(",") if lines else []
    return applied, secret in lines[1:]


def _reason(code: int, text: str, limits: Limits) -> str:
    if code == -signal.SIGXCPU:
        return f"used more than {limits.cpu_seconds} s of processor time"
    if code < 0:
        return f"killed by signal {-code}"
    lines = text.strip().splitlines()
    return lines[-1][:200] if code and lines else f"ended early with exit code {code}"
