"""What a generated program may do, and what is left when it tries more."""

import os
import sys
import tempfile
import time

import pytest

from griffin_jax.evaluation import sandbox

SHORT = sandbox.Limits(seconds=2.0, cpu_seconds=1)
LONG = sandbox.Limits(seconds=60.0)  # for what ends by another limit

# Native code, which the audit hook doesn't see.
NATIVE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
if libc.{call} == -1:
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
"""


def run(program, limits=LONG):
    return sandbox.run(program, limits, allow_code_execution=True)


def test_a_program_that_ends_passes():
    assert run("print('said')") == sandbox.Outcome(True, "passed", "said\n")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("import sys; sys.exit(0)", "ended early with exit code 0"),
        ("import os; os._exit(0)", "ended early with exit code 0"),
        ("input()", "EOFError: EOF when reading a line"),
        ("import os; os.closerange(0, 100)\nwhile True: pass", "killed by signal 9"),
        ("import ctypes; ctypes.string_at(0)", "killed by signal 11"),
    ],
)
def test_a_program_that_does_not_reach_its_end_fails_with_the_reason(program, reason):
    outcome = run(program)
    assert (outcome.passed, outcome.reason) == (False, reason)


def test_time_runs_out():
    programs = [
        "while True: pass",
        "import time; time.sleep(1000)",
        "import signal, time\nsignal.pthread_sigmask(0, range(1, 64))\ntime.sleep(99)",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    ]
    begin = time.monotonic()
    outcomes = sandbox.run_all(
        programs, SHORT, allow_code_execution=True, workers=len(programs), progress=False
    )
    assert time.monotonic() - begin < 60
    for outcome in outcomes:
        assert not outcome.passed
        assert outcome.reason in ("ran longer than 2 s", "used more than 1 s of processor time")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("x = [0] * 10**11", "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(10**7))", "MemoryError"),
        ("while True: print('x' * 10_000)", "printed more than 1048576 bytes"),
        ("open('big', 'wb').write(b'x' * 10**8)", "File too large"),
        ("import os\nwhile True: os.fork()", "os.fork is not allowed here"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen is not allowed here"),
        ("import os; os.kill(os.getppid(), 9)", "os.kill is not allowed here"),
        ("import socket; socket.socket()", "socket.__new__ is not allowed here"),
        ("open(f'{outside}/made', 'w')", "writing outside of the scratch directory"),
        ("import os; os.remove(f'{outside}/kept')", "os.remove outside of the scratch directory"),
        ("import os; os.chmod(f'{outside}/kept', 0)", "os.chmod is not allowed here"),
        ("import shutil; shutil.rmtree(outside)", "outside of the scratch directory"),
        (
            "import os\nfolder = os.open(outside, os.O_RDONLY)\n"
            "os.rename('kept', 'here', src_dir_fd=folder)",
            "os.rename outside of the scratch directory",
        ),
    ],
)
def test_hostile_programs_are_refused(tmp_path, program, reason):
    (tmp_path / "kept").write_text("as it was")
    outcome = run(f"outside = {str(tmp_path)!r}\n{program}")
    assert not outcome.passed
    assert reason in outcome.reason
    assert os.listdir(tmp_path) == ["kept"]
    assert (tmp_path / "kept").read_text() == "as it was"


@pytest.mark.parametrize(
    ("mechanism", "kept_by", "call"),
    [
        ("processes", "seccomp", "fork()"),
        ("processes", "seccomp", "kill(os.getppid(), 9)"),
        ("processes", "seccomp", "ptrace(16, os.getppid(), 0, 0)"),
        ("network", "seccomp", "socket(2, 1, 0)"),
        ("network", "network namespace", "socket(2, 1, 0)"),
        ("writing files", "Landlock", "open(b'{outside}/made', 0o101, 0o644)"),
        ("writing files", "Landlock", "unlink(b'{outside}/kept')"),
        ("writing files", "Landlock", "truncate(b'{outside}/kept', 0)"),
        ("writing files", "Landlock", "rename(b'{outside}/kept', b'{outside}/moved')"),
    ],
)
def test_the_kernel_refuses_native_code_too(tmp_path, mechanism, kept_by, call):
    if sandbox.guarantees()[mechanism] != kept_by:
        pytest.skip(f"{mechanism} here: {sandbox.guarantees()[mechanism]}")
    (tmp_path / "kept").write_text("as it was")
    outcome = run(NATIVE.format(call=call.format(outside=tmp_path)))
    assert not outcome.passed
    assert "Operation not permitted" in outcome.reason or "Permission denied" in outcome.reason
    assert (tmp_path / "kept").read_text() == "as it was"
    assert os.listdir(tmp_path) == ["kept"]


def test_many_files_do_not_fill_the_disk():
    if sandbox.guarantees()["disk"] != "16 MiB in memory":
        pytest.skip("no file system of its own here")
    outcome = run("for i in range(100): open(str(i), 'wb').write(b'x' * 10**6)")
    assert "No space left on device" in outcome.reason


def test_the_scratch_directory_is_home_and_goes_away():
    outcome = run(
        "import os, pathlib, tempfile\n"
        "assert os.environ['HOME'] == os.getcwd() == tempfile.gettempdir()\n"
        "assert set(os.environ) & {'PATH', 'HF_TOKEN', 'PYTHONPATH'} == {'PATH'}\n"
        "with tempfile.TemporaryDirectory() as folder: open(folder + '/file', 'w').close()\n"
        "path = pathlib.Path('file')\npath.write_text('x')\npath.unlink()\n"
        "path.write_text('stays')\nprint(os.getcwd())"
    )
    assert outcome.passed, outcome
    assert not os.path.exists(outcome.output.strip())


def test_threads_and_numpy_work():
    outcome = run(
        "import threading, numpy\n"
        "threads = [threading.Thread(target=numpy.zeros, args=(9,)) for _ in range(3)]\n"
        "[one.start() for one in threads]; [one.join() for one in threads]\n"
    )
    assert outcome.passed, outcome


def test_many_programs_keep_their_order_and_leave_nothing_behind(monkeypatch, tmp_path):
    # A folder of its own: others may run programs beside it.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    programs = [f"assert {i} % 3" for i in range(9)]
    outcomes = sandbox.run_all(programs, allow_code_execution=True, progress=False)
    assert [outcome.passed for outcome in outcomes] == [bool(i % 3) for i in range(9)]
    assert not list(tmp_path.iterdir())


def test_nothing_runs_without_permission(monkeypatch):
    monkeypatch.delenv(sandbox.ALLOW_VARIABLE, raising=False)
    for call in (lambda: sandbox.run("pass"), lambda: sandbox.run_all(["pass"])):
        with pytest.raises(sandbox.CodeExecutionRefused, match="GRIFFIN_ALLOW_CODE_EXECUTION=1"):
            call()
    monkeypatch.setenv(sandbox.ALLOW_VARIABLE, "1")
    assert sandbox.run("pass").passed


@pytest.mark.skipif(sys.platform != "linux", reason="the mechanisms are Linux's")
def test_what_is_guaranteed_is_said():
    said = sandbox.guarantees()
    assert set(said) == {
        "network",
        "writing files",
        "processes",
        "memory, time, file size",
        "disk",
    }
    assert all(said.values())
