"""The inner side of `sandbox.py`: shuts itself in, then runs the program that comes through stdin.

Started as `python -I -B sandbox_child.py REPORT_FD SCRATCH`, a script that imports nothing of this
package. On REPORT_FD it writes one line, the kernel's mechanisms in force, and the secret as a
second one once the program ran to its end.
"""

import builtins
import ctypes
import errno
import fcntl
import functools
import importlib.util
import json
import os
import platform
import resource
import sys
from pathlib import Path

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC
# Audit events -> which of their arguments are paths that would be changed, and which the folders
# that these are relative to (-1: the working directory).
_CHANGES = {
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
}
# Events that are refused whatever they name.
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
    """Applies whatever the kernel grants, in the order in which one does not hinder the next."""
    path = Path(__file__).with_name("sandbox_linux.py")
    spec = importlib.util.spec_from_file_location("sandbox_linux", path)
    linux = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(linux)
    libc = ctypes.CDLL(None, use_errno=True)
    return linux.shut_in(libc, scratch, platform.machine())


def _hook(scratch):
    inside = scratch + os.sep
    # Bound here: the program may replace what the modules hold.
    realpath, join, separator = os.path.realpath, os.path.join, os.sep
    fspath, fsdecode, devnull, path_of = os.fspath, os.fsdecode, os.devnull, _path_of
    # With its number: shutil.rmtree sets the path of what it catches, which hides a bare message.
    refusal = functools.partial(PermissionError, errno.EPERM)

    def outside(path, folder=-1):
        if isinstance(path, int):
            return False  # Open already.
        path = fsdecode(fspath(path))
        if folder != -1:
            path = join(path_of(folder), path)
        return path != devnull and not (realpath(path) + separator).startswith(inside)

    def hook(event, arguments):
        if event == "open":
            path, mode, flags = arguments
            writes = flags & _WRITING if flags else set(mode or "") & set("wax+")
            if writes and outside(path):
                raise refusal("writing outside of the scratch directory", path)
        elif event in _CHANGES:
            for path, folder in _CHANGES[event]:
                if outside(arguments[path], -1 if folder is None else arguments[folder]):
                    raise refusal(f"{event} outside of the scratch directory", arguments[path])
        elif event in _REFUSED:
            raise refusal(f"{event} is not allowed here")

    return hook


def _path_of(descriptor):
    if sys.platform == "linux":
        return os.readlink(f"/proc/self/fd/{descriptor}")
    return fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0").decode()


if __name__ == "__main__":
    main()
