"""What stands around a command from its first import to its last flush."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import guard

ROOT = Path(__file__).parents[2]


# Shells have what runs in their background ignore Ctrl-C, and its children inherit that.
HEARING_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def start(*arguments, python=(), **options):
    return subprocess.Popen(
        [sys.executable, *python, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        text=True,
        **options,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("name", ["experiments.train", "experiments.sample"])
@pytest.mark.parametrize("last", ["absl.app", "numpy", "jax"])
def test_ctrl_c_while_modules_are_imported_prints_no_traceback(name, last):
    process = start(
        *(name, "--prompt=x"),
        python=("-c", HEARING_CTRL_C, "-X", "importtime"),
        stderr=subprocess.PIPE,
    )
    lines = []
    for line in process.stderr:  # a line for each module that has been imported
        lines.append(line)
        if line.rstrip().endswith(f" {last}"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait(timeout=60) in (-signal.SIGINT, guard.INTERRUPTED)
    assert any("experiments.guard" in line for line in lines)
    assert "Traceback" not in rest and "KeyboardInterrupt" not in rest


def call(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True
    )


ERRORS = [
    ("ValueError('no\\nsuch')", "error: no such"),
    ("OSError(28, 'No space left on device', '/full/disk')", "error: /full/disk: No space left"),
    ("FileNotFoundError('nowhere: there is no such file')", "error: nowhere: there is no such fil"),
    (
        "ModuleNotFoundError(\"No module named 'grain'\", name='grain')",
        "pip install 'griffin_jax[tr",
    ),
    ("RecursionError('too deep')", "error: something is nested too deeply"),
    ("ValueError()", "error: ValueError"),
]


@pytest.mark.parametrize(("error", "line"), ERRORS)
def test_what_a_user_can_mend_is_one_line(error, line, monkeypatch, capsys):
    from experiments import command

    def fails():
        raise eval(error)

    monkeypatch.setattr(command.processes, "several", lambda: False)
    with pytest.raises(SystemExit) as ended:
        command._guard(fails)
    assert ended.value.code == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert line in told and told.startswith("error: ")


def test_a_fault_of_our_own_keeps_its_traceback():
    from experiments import command

    with pytest.raises(RuntimeError, match="a fault"):
        command._guard(lambda: (_ for _ in ()).throw(RuntimeError("a fault")))
    with pytest.raises(AttributeError):
        command._guard(lambda: None.nothing)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--help"], 0, "--config.NAME=VALUE"),
        (["-h"], 0, "temperature=0.8"),
        (["--nosuch"], 1, "error: Unknown command line flag 'nosuch'; --help lists what there is"),
        (["--promt=x"], 1, "error: Unknown command line flag 'promt'; did you mean --prompt?"),
        (["--top_p"], 1, "error: --top_p is a field of the config: write --config.top_p"),
        (["word"], 1, "error: 'word' is no flag"),
        (["--config=configs/train_tiny.py"], 1, "is a config of experiments.train"),
        (["--num_processes=x"], 1, "error: "),
    ],
)
def test_a_command_ends_before_any_work_with_a_status(arguments, status, words):
    process = start(
        "experiments.sample", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == status
    assert words in (err if status else out)
    assert "Traceback" not in err and len(err.splitlines()) == status
    assert len(out.splitlines()) < 50


@pytest.mark.skipif(sys.platform == "win32", reason="a shell")
@pytest.mark.parametrize("closed", [">&-", "> /dev/full"])
def test_output_that_nobody_can_read_is_no_success(closed):
    if "full" in closed and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    script = "import sys; from experiments import command; command.run(lambda: print('x' * 9))"
    done = subprocess.run(
        f'{sys.executable} -c "{script}" {closed}',
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr and done.stderr.startswith("error: ")


def test_a_full_disk_has_a_name():
    full = OSError(errno.ENOSPC, "No space left on device")
    assert guard.describe(full) == "standard output: No space left on device"
    named = OSError(errno.ENOSPC, "No space left on device", "/a")
    assert guard.describe(named) == "/a: No space left on device"
