"""Files and folders appear complete or not at all, whatever stands in their place."""

import errno
import os
import signal
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from griffin_jax import files
from griffin_jax.files import new_file, new_folder, write_json, write_text
from griffin_jax.locks import InUseError
from griffin_jax.paths import OutputError
from tests import ground_floor


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete_and_keeps_its_permissions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with new_file("deep/a.txt") as file:
        file.write(b"one")
        assert not (tmp_path / "deep/a.txt").exists()
        monkeypatch.chdir("/")
    path = tmp_path / "deep/a.txt"
    assert path.read_bytes() == b"one"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o640)
    write_json(path, {"a": "é"}, ensure_ascii=False)
    assert path.read_text(encoding="utf-8") == '{\n  "a": "é"\n}\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names(path.parent) == ["a.txt"]


def test_nothing_is_left_of_a_file_that_fails(tmp_path):
    write_text(tmp_path / "old", "old")
    for name in ("old", "new/deep"):
        with pytest.raises(ZeroDivisionError), new_file(tmp_path / name) as file:
            file.write(b"half")
            raise ZeroDivisionError
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_links_are_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "there").symlink_to("disk/there")
    (tmp_path / "again").symlink_to("there")
    (tmp_path / "loop").symlink_to("loop")
    write_text(tmp_path / "again", "text")
    write_text(tmp_path / "again", "more")
    assert (tmp_path / "disk/there").read_text() == "more"
    assert (tmp_path / "there").is_symlink() and (tmp_path / "again").is_symlink()
    assert names(tmp_path / "disk") == ["there"]
    with pytest.raises(OSError, match="loop"):
        write_text(tmp_path / "loop", "text")


def test_devices_and_pipes_are_written_into(tmp_path):
    write_text("/dev/null", "text")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    os.mkfifo(tmp_path / "pipe")
    read = []
    thread = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    thread.start()
    write_text(tmp_path / "pipe", "text" * 100_000)
    thread.join()
    assert read == ["text" * 100_000]
    assert names(tmp_path) == ["pipe"]
    with pytest.raises(OutputError, match="/dev/full cannot be written: No space left on device"):
        write_text("/dev/full", "text")
    with pytest.raises(ZeroDivisionError), new_file("/dev/full") as file:
        file.write(b"half")  # which goes nowhere before the end
        raise ZeroDivisionError


def test_standard_output_is_written_in_order_wherever_it_goes(tmp_path):
    script = """
import sys
from griffin_jax.files import write_text
sys.stdout.write("before\\n")
write_text("/dev/stdout", "text\\n")
write_text("/dev/fd/1", "more\\n")
sys.stdout.write("after\\n")
"""
    with (tmp_path / "out").open("wb") as file:
        ground_floor.run(script, stdout=file, check=True)
    assert (tmp_path / "out").read_text() == "before\ntext\nmore\nafter\n"
    script = "from griffin_jax.files import write_text; write_text('/dev/stdout', 'text')"
    shell = ["sh", "-c", '"$@" >&-', "sh", *ground_floor.command(script)]
    closed = subprocess.run(shell, capture_output=True, text=True)
    assert closed.returncode == 1
    assert "/dev/stdout cannot be written: " in closed.stderr


def test_a_file_whose_folder_takes_no_other_is_written_in_place(tmp_path, monkeypatch):
    path = tmp_path / "mounted"
    path.write_text("a long text")
    number = path.stat().st_ino
    monkeypatch.setattr(files.paths, "stays", lambda target: target == path)
    write_text(path, "short")
    assert (path.read_text(), path.stat().st_ino) == ("short", number)
    monkeypatch.undo()

    def busy(*_):
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(Path, "replace", busy)
    write_text(path, "new")
    assert (path.read_text(), path.stat().st_ino) == ("new", number)
    assert names(tmp_path) == ["mounted"]


def test_what_is_read_only_stays(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "kept")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "a")
    with pytest.raises(OutputError, match="a cannot be written: it is read-only"):
        write_text(tmp_path / "a", "lost")
    assert (tmp_path / "a").read_text() == "kept"


def test_a_full_disk_is_told_by_the_users_path(tmp_path):
    script = """
import resource, sys
from griffin_jax.files import new_folder, write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
def whole(): write_text(sys.argv[1] + "/a.json", "x" * 2**17)
def part():
    with new_folder(sys.argv[1] + "/m") as folder:
        (folder / "weights").write_bytes(b"x" * 2**17)
for write in (whole, part):
    try: write()
    except OSError as error: print(error)
"""
    done = ground_floor.run(script, tmp_path, capture_output=True, check=True)
    assert done.stdout.splitlines() == [
        f"{tmp_path}/{name} cannot be written: File too large" for name in ("a.json", "m")
    ]
    assert names(tmp_path) == []


def test_errors_of_other_libraries_and_of_other_files_are_told_apart(tmp_path):
    full = pytest.raises(OutputError, match=f"{tmp_path}/m cannot be written: No space left")
    with full, new_folder(tmp_path / "m"):
        raise ValueError("ABORTED: writing x/.m.zzz: No space left on device [source]")
    with pytest.raises(FileNotFoundError, match="model2"), new_folder(tmp_path / "m"):
        (tmp_path / "model2").read_text()
    with pytest.raises(InterruptedError), new_file(tmp_path / "m"):
        raise InterruptedError(errno.EINTR, "of a network")
    assert names(tmp_path) == []


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with new_folder(tmp_path / "deep/m") as folder:
        (folder / "a").write_text("a")
        (folder / "b").mkdir()
        assert not (tmp_path / "deep/m").exists()
    assert names(tmp_path / "deep/m") == ["a", "b"]
    assert names(tmp_path / "deep") == ["m"]
    there = pytest.raises(OutputError, match="deep/m cannot be written: it exists already")
    with there, new_folder(tmp_path / "deep/m"):
        raise AssertionError
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "other/n") as folder:
        (folder / "a").write_text("a")
        raise ZeroDivisionError
    assert names(tmp_path) == ["deep"]


def test_an_empty_folder_or_a_link_to_one_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "future").symlink_to("nowhere")
    for name in ("link", "future"):
        with new_folder(tmp_path / name) as folder:
            (folder / "a").write_text(name)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / name / "a").read_text() == name
    assert names(tmp_path) == ["empty", "future", "link", "nowhere"]


def test_a_mounted_folder_is_filled_from_within(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    monkeypatch.setattr(files.paths, "stays", lambda target: target == tmp_path / "m")
    for text in ("a", "b"):
        with new_folder(tmp_path / "m", replace=text == "b") as folder:
            assert folder.parent == tmp_path / "m"
            (folder / text).write_text(text)
        assert names(tmp_path / "m") == [text]
    assert names(tmp_path) == ["m"]


def test_a_folder_that_is_replaced_is_there_until_the_new_one_is(tmp_path):
    for text in ("a", "b"):
        with new_folder(tmp_path / "m", replace=True) as folder:
            (folder / text).write_text(text)
            assert text == "a" or names(tmp_path / "m") == ["a"]
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "m", replace=True):
        raise ZeroDivisionError
    assert names(tmp_path / "m") == ["b"]
    # Killed between the two renames.
    (tmp_path / "m").rename(tmp_path / ".m.replaced")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "m", replace=True):
        raise ZeroDivisionError
    assert names(tmp_path / "m") == ["b"]
    assert names(tmp_path) == ["m"]


FILL = """
import sys, time
from griffin_jax import files
with getattr(files, sys.argv[2])(sys.argv[1]) as it:
    if sys.argv[2] == "new_folder":
        (it / "part").write_text("half")
    print("begun", flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("writer", ["new_file", "new_folder"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_what_an_ended_process_leaves_is_removed_at_once_or_by_the_next(tmp_path, writer, number):
    target = tmp_path / "m"
    process = ground_floor.start(FILL, target, writer)
    assert [name for name in names(tmp_path) if name.endswith(".partial")]
    if writer == "new_folder":
        in_use = pytest.raises(InUseError, match=f"m is in use by process {process.pid} on")
        with in_use, new_folder(target):
            raise AssertionError
    process.send_signal(number)
    process.communicate()
    assert process.returncode != 0
    left = names(tmp_path)
    if number != signal.SIGKILL:
        assert left == []
    else:
        assert len(left) == 2  # which the next one removes, and no other
        (tmp_path / ".m.x.12345678.partial").write_text("of another target")
        with getattr(files, writer)(target):
            pass
        assert names(tmp_path) == [".m.x.12345678.partial", "m"]


def test_a_name_as_long_as_names_may_be_is_written(tmp_path):
    name = "n" * 255
    write_text(tmp_path / name, "text")
    with new_folder(tmp_path / ("m" * 255)):
        pass
    assert names(tmp_path) == ["m" * 255, name]
    with pytest.raises(OutputError, match="File name too long"):
        write_text(tmp_path / (name + "n"), "text")


def test_many_threads_write_one_file_one_after_the_other(tmp_path):
    def write(text):
        with new_file(tmp_path / "a") as file:
            for letter in text:
                file.write(letter.encode())
                time.sleep(0.001)

    texts = [letter * 20 for letter in "abcd"]
    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_text() in texts
    assert names(tmp_path) == ["a"]
