"""The inner side of `sandbox.py`: shuts itself in, then runs the program that comes through stdin.

Started as `python -I -B sandbox_child.py REPORT_FD SCRATCH`, a script that imports nothing of this
package. On REPORT_FD it writes one line, the kernel's mechanisms in force, and the secret as a
second one once the program ran to its end.
"""

import builtins
import ctypes
import importlib.util
import json
import os
import platform
import resource
import sys
from pathlib import Path

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC
# Audit events with paths that would be changed, and events that are refused whatever they name.
_CHANGES = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
)
_REFUSED = (
    *("os.chmod", "os.chown", "os.chflags", "os.setxattr", "os.removexattr", "os.utime"),
    *("os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "os.exec"),
    *("subprocess.Popen", "pty.spawn", "os.kill", "os.killpg", "signal.pthread_kill"),
    *("socket.__new__", "socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request"),
)


def main():
    report, scratch = int(sys.argv[1]), os.path.realpath(sys.argv[2])
    job = json.loads(sys.stdin.buffer.read())
    with open(os.devnull) as null:
        os.dup2(null.fileno(), 0)
    sys.stdin = os.fdopen(0)
    applied = _linux_protections(scratch) if sys.platform == "linux" else []
    _limit(job["limits"], count_processes="seccomp" not in applied)
    code = compile(job["program"], "<program>", "exec", dont_inherit=True)
    os.write(report, (",".join(applied) + "\n").encode())
    sys.argv[:] = ["program"]
    sys.addaudithook(_hook(scratch))
    itself = os.getpid()
    exec(code, {"__name__": "__main__", "__builtins__": builtins})
    if os.getpid() == itself:
        sys.stdout.flush()
        os.write(report, job["secret"].encode() + b"\n")
        os._exit(0)


def _limit(limits, count_processes):
    """The soft and the hard limit at once: no way back."""

    def at_most(kind, value):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))

    at_most(resource.RLIMIT_CORE, 0)
    at_most(resource.RLIMIT_FSIZE, limits["file_bytes"])
    at_most(resource.RLIMIT_NOFILE, limits["open_files"])
    seconds = limits["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # SIGXCPU, then SIGKILL
    at_most(resource.RLIMIT_AS, limits["memory_bytes"])
    if count_processes:
        at_most(resource.RLIMIT_NPROC, 256)  # of the user in all


def _linux_protections(scratch):
    """Whatever the kernel grants, in the order in which one doesn't hinder the next."""
    path = Path(__file__).with_name("sandbox_linux.py")
    spec = importlib.util.spec_from_file_location("sandbox_linux", path)
    linux = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(linux)
    libc = ctypes.CDLL(None, use_errno=True)
    return linux.shut_in(libc, scratch, platform.machine())


def _hook(scratch):
    inside = scratch + os.sep
    # Bound here: the program may replace what the modules hold.
    realpath, fspath, fsdecode, devnull = os.path.realpath, os.fspath, os.fsdecode, os.devnull

    def outside(path):
        if isinstance(path, int):
            return False
        path = fsdecode(fspath(path))
        return path != devnull and not (realpath(path) + os.sep).startswith(inside)

    def hook(event, arguments):
        if event == "open":
            path, mode, flags = arguments
            writes = flags & _WRITING if flags else set(mode or "") & set("wax+")
            if writes and outside(path):
                raise PermissionError(f"writing outside of the scratch directory: {path!r}")
        elif event in _CHANGES:
            for path in arguments:
                if isinstance(path, (str, bytes, os.PathLike)) and outside(path):
                    raise PermissionError(f"{event} outside of the scratch directory: {path!r}")
        elif event in _REFUSED:
            raise PermissionError(f"{event} is not allowed here")

    return hook


if __name__ == "__main__":
    main()
