"""What a user's path means, and what is said of outputs before any work is done."""

import os
import pathlib
import pwd
import socket

import pytest

from griffin_jax.paths import OutputError, check_file, check_folder, make_folder, resolve


def test_home_folders_and_relative_paths_become_absolute(home):
    work = home.parent / "work"
    assert resolve("~") == home
    assert resolve("~/a b/é") == home / "a b/é"
    assert resolve(pathlib.Path("~/a")) == home / "a"
    assert resolve(b"~/a") == home / "a"
    assert resolve("a/../b") == work / "a/../b"  # a may be a link
    assert resolve("runs/~/a~") == work / "runs/~/a~"
    assert resolve(".") == work
    user = pwd.getpwuid(os.getuid())
    assert resolve(f"~{user.pw_name}/x") == pathlib.Path(user.pw_dir) / "x"
    assert resolve(resolve("~/a")) == home / "a"


def test_a_file_whose_name_begins_with_a_tilde_is_found(home):
    (home.parent / "work" / "~a-file-of-mine").touch()
    assert resolve("~a-file-of-mine") == home.parent / "work" / "~a-file-of-mine"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "--output is empty"),
        ("  ", "--output is empty"),
        ("a\0b", "NUL"),
        ("\ud800", "a character that no path does"),
        ("~nobody-of-this-name/x", "there is no user 'nobody-of-this-name'"),
        ("gs://bucket/model", "is an address; give a path of this machine"),
        (5, "must be a path, got 5"),
        (None, "must be a path, got None"),
    ],
)
def test_what_is_no_path_is_refused_by_name(home, path, message):
    with pytest.raises(ValueError, match=message) as error:
        resolve(path, "--output")
    assert "--output" in str(error.value) and "\n" not in str(error.value)


def test_without_a_home_absolute_and_relative_paths_still_work(home, monkeypatch):
    def nobody(*_):
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert resolve("a") == home.parent / "work/a"
    with pytest.raises(ValueError, match="no home folder"):
        resolve("~/a")
    monkeypatch.setenv("HOME", "")
    with pytest.raises(ValueError, match="no home folder"):
        resolve("~/a")


def test_a_working_folder_that_is_gone_is_said(home, monkeypatch):
    gone = home.parent / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert resolve("/a") == pathlib.Path("/a")
    with pytest.raises(FileNotFoundError, match="the working folder is gone"):
        resolve("a")
    monkeypatch.chdir(home)


def test_an_output_file_is_checked_before_the_work(home):
    (home / "file").write_text("text")
    (home / "broken").symlink_to(home / "nowhere/deep")
    assert check_file("~/new/deep/a.json") == home / "new/deep/a.json"
    assert not (home / "new").exists()
    assert check_file("~/file") == home / "file"
    assert check_file("/dev/null") == pathlib.Path("/dev/null")
    for path, message in [
        ("~", "it is a folder; give a file's name"),
        ("~/new/", "it is a folder; give a file's name"),
        ("~/file/a.json", "file is a file and no folder"),
        ("/proc/a.json", "/proc takes no new file"),
        (f"~/{'a' * 300}/b", "takes no new file|too long"),
    ]:
        with pytest.raises(OSError, match=message) as error:
            check_file(path)
        assert str(resolve(path)) in str(error.value) and "\n" not in str(error.value)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(OutputError, match="socket; give a file's name"):
            check_file("socket")
    assert sorted(path.name for path in home.iterdir()) == ["broken", "file"]


def test_an_output_that_is_an_input_is_refused_however_it_is_written(home):
    (home / "data").write_text("text")
    (home / "link").symlink_to("data")
    os.link(home / "data", home / "hard")
    for output in ("~/data", str(home / "data"), "~/link", "~/hard", "../home/data"):
        with pytest.raises(ValueError, match="is read as well, and would be overwritten"):
            check_file(output, inputs=["~/other", "~/data"])
    assert check_file("/dev/null", inputs=["/dev/null"])
    assert check_file("~/new", inputs=["~/new"])  # whose absence the reader tells


def test_an_output_folder_is_checked_before_the_work(home):
    (home / "full").mkdir()
    (home / "full/a").touch()
    (home / "empty").mkdir()
    (home / "link").symlink_to("empty")
    (home / "broken").symlink_to("nowhere")
    for path in ("~/empty", "~/link", "~/broken", "~/a/b/c"):
        assert check_folder(path) == resolve(path)
    for path in ("~/full", "~/full/a"):
        with pytest.raises(OutputError, match="it exists already"):
            check_folder(path)
    with pytest.raises(OutputError, match="full/a is a file and no folder"):
        check_folder("~/full/a/b")
    assert make_folder("~/a/b") == home / "a/b" and (home / "a/b").is_dir()
    with pytest.raises(OutputError, match="full/a is a file and no folder"):
        make_folder("~/full/a")
