"""What commands say of their outputs before any work, and what they leave when they are ended."""

import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from experiments import outputs
from griffin_jax.files import new_folder
from griffin_jax.locks import InUseError
from griffin_jax.paths import OutputError
from tests import ground_floor

ROOT = Path(__file__).parents[2]
CLAIM = """
import sys, time
from griffin_jax.files import claim, write_text
claim(sys.argv[1])
write_text(sys.argv[1], "meanwhile")
print("held", flush=True)
time.sleep(100)
"""


def flag(value):
    return types.SimpleNamespace(name="output", value=value)


def test_flags_mean_home_folders_and_make_nothing(home):
    for check in (outputs.file, outputs.folder, outputs.new_folder):
        assert check(flag("~/new/a")) == home / "new/a"
        assert check(flag("new/a")) == home.parent / "work/new/a"
    assert outputs.file(flag(None)) is None and outputs.folder(flag(None)) is None
    assert outputs.file(flag("-")) == Path("/dev/stdout")
    assert list(home.iterdir()) == list((home.parent / "work").iterdir()) == []


def test_what_cannot_be_is_told_with_the_flag(home):
    (home / "a").write_text("text")
    for check, value, message in [
        (outputs.file, "", "--output is empty"),
        (outputs.folder, "~nobody-at-all/x", "--output ~nobody-at-all/x: there is no user"),
        (outputs.file, "~", "it is a folder; give a file's name"),
        (outputs.folder, "~/a", "a is a file and no folder"),
        (outputs.new_folder, "~/a/b", "a is a file and no folder"),
        (outputs.new_folder, "~/a", "it exists already"),
        (outputs.file, "/proc/a", "/proc takes no new file"),
    ]:
        with pytest.raises((ValueError, OutputError), match=message):
            check(flag(value))
    with pytest.raises(ValueError, match=r"--output .*home/a is read as well"):
        outputs.file(flag("~/a"), inputs=["~/b", "../home/a"])


def test_a_file_is_held_until_the_command_ends(home):
    path = home / "out.json"
    other = ground_floor.start(CLAIM, path)
    with pytest.raises(OSError, match=rf"out\.json is in use by process {other.pid} on "):
        outputs.file(flag(str(path)))
    assert path.read_text() == "meanwhile"
    other.send_signal(signal.SIGTERM)
    other.communicate()
    assert other.returncode == 128 + signal.SIGTERM
    assert [one.name for one in home.iterdir()] == ["out.json"]


def test_what_a_killed_convert_leaves_is_removed_by_the_next_and_one_runs_at_a_time(tmp_path):
    script = """
import sys
from experiments import command, convert
from griffin_jax import checkpoints

write = checkpoints.save_leaves

def save_leaves(output, config, leaves, **options):
    def slow():
        for count, leaf in enumerate(leaves):
            if count == 3:
                print("begun", flush=True)
                sys.stdin.read()
            yield leaf
    write(output, config, slow(), **options)

checkpoints.save_leaves = save_leaves
"""
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    slow = "\n".join([script, 'sys.argv[1:] = ["--output=~/m"]', "command.run(convert.main)"])

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", slow],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    first = start()
    assert first.stdout.readline() == "begun\n"
    (partial,) = tmp_path.glob(".m.*.partial")
    first.kill()
    first.communicate()
    assert partial.is_dir() and any(partial.iterdir())

    second = start()
    assert second.stdout.readline() == "begun\n"
    assert not partial.exists()
    in_use = pytest.raises(InUseError, match=f"/m is in use by process {second.pid} on ")
    with in_use, new_folder(tmp_path / "m"):
        raise AssertionError
    second.send_signal(signal.SIGTERM)
    second.communicate()
    assert second.returncode == 128 + signal.SIGTERM
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith((".m", "m", "~"))] == []
