"""Locks between processes and threads, with and without those of the system."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from griffin_jax import locks
from griffin_jax.locks import InUseError, Lock
from tests import ground_floor

HOLD = """
import sys
from griffin_jax.locks import Lock
with Lock(sys.argv[1], "the run"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["flock", "no flock"])
def kind(request, monkeypatch):
    """The system's locks, and a file system that has none."""
    if request.param == "no flock":
        monkeypatch.setattr(locks, "_PAUSE", 0.001)

        def flock(*_):
            raise OSError(errno.ENOTSUP, "not supported")

        monkeypatch.setattr(locks.fcntl, "flock", flock)
    return request.param


def test_a_second_thread_is_told_who_holds_it_and_waits_if_it_wants(tmp_path, kind):
    file = tmp_path / "lock"
    found = []

    def second():
        try:
            Lock(file, "the run").acquire()
        except InUseError as error:
            found.append(str(error))
        with Lock(file, "the run").waiting():
            found.append("taken")

    with Lock(file, "the run"):
        thread = threading.Thread(target=second)
        thread.start()
        while not found:
            pass
    thread.join()
    line, taken = found
    assert line.startswith(f"the run is in use by process {os.getpid()} (this one) on ")
    assert " since 20" in line and taken == "taken"
    assert not file.exists()


def test_a_lock_of_another_user_is_named(tmp_path, monkeypatch):
    file = tmp_path / "lock"
    file.touch()

    def refuse(path, *arguments):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InUseError, match=f"the run is another user's, as {file} is"):
        Lock(file, "the run").acquire()
    with pytest.raises(PermissionError):
        Lock(tmp_path / "none", "the run").acquire()


def test_one_thread_may_take_it_again(tmp_path, kind):
    file = tmp_path / "lock"
    with Lock(file, "the run"):
        with Lock(file, "the run"):
            pass
        Lock(file, "the run").release()  # which never took it
        assert file.exists()
    assert not file.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_killed_process_held_is_free(tmp_path, number):
    file = tmp_path / "lock"
    process = ground_floor.start(HOLD, file)
    with pytest.raises(InUseError, match=f"in use by process {process.pid} on"):
        Lock(file, "the run").acquire()
    process.send_signal(number)
    process.communicate()
    assert file.exists()
    with Lock(file, "the run"):
        pass
    assert not file.exists()


def test_without_locks_of_the_system_the_process_that_is_gone_is_found_out(tmp_path, monkeypatch):
    file = tmp_path / "lock"
    monkeypatch.setattr(locks, "_PAUSE", 0.001)
    monkeypatch.setattr(locks, "_lock", lambda descriptor: None)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = locks._owner()

    def left(**owner):
        file.write_text(locks.json.dumps(here | owner))

    left(pid=gone.pid)
    with Lock(file, "the run"):
        pass
    left(started="1")  # this process's number, of an earlier process
    with Lock(file, "the run"):
        pass
    file.write_text("")  # made, and killed before it was written
    with Lock(file, "the run"):
        pass
    left(host="elsewhere")
    with pytest.raises(InUseError, match=f"on elsewhere since .*; if .* remove {file}"):
        Lock(file, "the run").acquire()
    left()
    with pytest.raises(InUseError, match="this one"):
        Lock(file, "the run").acquire()
