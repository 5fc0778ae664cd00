"""Files of text: where lines end, how they may be compressed, and what is said of wrong ones."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import threading
import types

import pytest

from griffin_jax.text_files import TextFile, TextFileError, find_json_lines
from tests import ground_floor

# Everything but \n at which str.splitlines cuts.
ODD = "a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i\rj"


def write(path, data):
    data = data if isinstance(data, bytes) else data.encode()
    compress = {".xz": lzma.compress, ".gz": gzip.compress, ".bz2": bz2.compress}
    path.write_bytes(compress.get(path.suffix.lower(), bytes)(data))
    return path


@pytest.mark.parametrize("name", ["a.txt", "a", "a.TXT.GZ", "a.txt.xz", "a.bz2", "a.b.md"])
def test_lines_end_at_newlines_alone(tmp_path, name):
    path = write(tmp_path / name, f"\ufeff{ODD}\r\n\r\n\ufeffx\n  y ")
    file = TextFile(path)
    assert not file.json_lines and str(file) == str(path)
    for _ in range(2):
        assert list(file.lines()) == [(1, ODD), (2, ""), (3, "\ufeffx"), (4, "  y ")]
        assert file.text() == f"{ODD}\r\n\r\n\ufeffx\n  y "
    assert list(TextFile(write(path, "")).lines()) == []


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.ndjson", "A.JSONL", "a.txt.NdJson.Gz", "a.jsonl.xz"]
)
def test_json_lines_are_known_by_the_name(tmp_path, name):
    records = [{"text": ODD}, ODD, 1, None]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path = write(tmp_path / name, "\ufeff" + "\r\n\n  \n".join(lines))
    file = TextFile(path)
    assert file.json_lines
    assert list(file.records()) == [(1, records[0]), (4, ODD), (7, 1), (10, None)]


@pytest.mark.parametrize("name", ["a.json", "jsonl", "a.jsonl.txt", "a.jsonlx", ".jsonl"])
def test_other_names_are_plain_text(tmp_path, name):
    assert not TextFile(write(tmp_path / name, "{}\n")).json_lines


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"ok\ncaf\xe9\n", "not UTF-8 at line 2, byte 3"),
        ("a.txt", "ok".encode("utf-16"), "it is UTF-16: save it as UTF-8"),
        ("a.txt", "ok".encode("utf-32"), "it is UTF-32: save it as UTF-8"),
        ("a.txt", gzip.compress(b"ok", mtime=0), "it is gzip data: let its name end in .gz"),
        ("a.jsonl", lzma.compress(b"1\n"), "it is xz data: let its name end in .xz"),
        ("a.txt", b"PK\3\4\x88", "it is a zip archive: unpack it first"),
        ("a.jsonl", b'1\n{"a": \n', ", line 2: not JSON: Expecting value"),
        ("a.jsonl", b'1\n{"a": ', ", line 2: the file ends amid it: truncated"),
        ("a.jsonl", b"1\n" + b"[" * 10**6 + b"\n", ", line 2: JSON in JSON beyond all bounds"),
        ("a.jsonl", b"9" * 5000 + b"\n", ", line 1: not JSON: Exceeds the limit"),
        ("a.jsonl", b'["\xff"]\n', "not UTF-8 at line 1, byte 2"),
        ("a.xz", lzma.compress(b"x" * 1000)[:-9], "truncated or damaged .xz file"),
        ("a.gz", gzip.compress(b"x" * 1000, mtime=0)[:-9], "truncated or damaged .gz file"),
        ("a.gz", b"plain text", "truncated or damaged .gz file"),
        ("a.bz2", b"plain text", "truncated or damaged .bz2 file"),
        ("a.tar.gz", gzip.compress(b"x", mtime=0), "a .tar file is no text"),
        ("a.parquet", b"PAR1", "a .parquet file is no text"),
        (".", b"", "it is a folder; give a file"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_place(tmp_path, name, data, message):
    path = tmp_path / name
    if name != ".":
        path.write_bytes(data)
    with pytest.raises(TextFileError) as error:
        file = TextFile(path, "corpus")
        list(file.records() if file.json_lines else file.lines())
    assert str(error.value).startswith(f"corpus {path}") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_strings_of_a_field_are_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00"}\n{"text": "x\\ud83d"}\n')
    texts = TextFile(path).strings("text")
    assert next(texts) == (1, "😀")
    with pytest.raises(TextFileError, match=r"a.jsonl, line 2: \\ud83d is half a character"):
        next(texts)
    for line in ('{"body": ""}', '{"text": 5}', '"text"', '{"text": null}', "[]"):
        path.write_text('{"text": ""}\n' + line)
        with pytest.raises(TextFileError, match=r'a\.jsonl, line 2: no "text" string in it'):
            list(TextFile(path).strings("text"))


def test_errors_are_of_the_type_asked_for_and_absence_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(KeyError, match=f"prompts {tmp_path}/a: not UTF-8"):
        TextFile("a", "prompts", KeyError).text()
    for name in ("b", "a/b"):
        with pytest.raises(OSError, match=f"prompts {tmp_path}/{name}: there is no such file"):
            TextFile(name, "prompts", KeyError)
    with pytest.raises(ValueError, match="prompts is empty"):
        TextFile("", "prompts")


def test_zstd_is_read_or_told_to_need_a_library(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b'{"text": "x"}\n')
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    with pytest.raises(TextFileError, match=r"a.jsonl.zst: .* `pip install backports.zstd`"):
        TextFile(path)
    # Its place is taken by one that takes data as they are.
    monkeypatch.setitem(sys.modules, "backports", types.ModuleType("backports"))
    library = types.SimpleNamespace(open=lambda stored: stored)
    monkeypatch.setitem(sys.modules, "backports.zstd", library)
    assert list(TextFile(path).strings("text")) == [(1, "x")]


def test_standard_input_and_pipes_may_be_read_twice(tmp_path):
    script = """
from griffin_jax.text_files import TextFile
file = TextFile("-")
print(file, list(file.lines()), file.digest() == TextFile("-").digest(), file.is_empty())
"""
    done = ground_floor.run(script, input="one\r\ntwo", capture_output=True, check=True)
    assert done.stdout == "standard input [(1, 'one'), (2, 'two')] True False\n"
    shell = ["sh", "-c", '"$@" <&-', "sh", *ground_floor.command(script)]
    done = subprocess.run(shell, capture_output=True, text=True)
    assert "TextFileError: standard input: it is closed" in done.stderr

    os.mkfifo(tmp_path / "pipe.jsonl")
    thread = threading.Thread(target=lambda: (tmp_path / "pipe.jsonl").write_text("1\n"))
    thread.start()
    file = TextFile(tmp_path / "pipe.jsonl")
    assert [list(file.records()) for _ in range(2)] == [[(1, 1)]] * 2
    thread.join()


def test_json_lines_of_a_stem_are_found_under_any_of_their_names(tmp_path):
    assert find_json_lines(tmp_path, "test") == tmp_path / "test.jsonl"
    assert find_json_lines(tmp_path / "none", "test") == tmp_path / "none/test.jsonl"
    for name in ("test.txt", "test.b.jsonl", "test2.jsonl", "atest.jsonl", "test.jsonl.bak"):
        (tmp_path / name).touch()
    assert find_json_lines(tmp_path, "test") == tmp_path / "test.jsonl"
    for name in ("test.JSONL", "test.ndjson.gz", "test.jsonl.xz"):
        (tmp_path / name).touch()
        assert find_json_lines(tmp_path, "test") == tmp_path / name
        (tmp_path / name).unlink()
    for name in ("test.jsonl", "test.ndjson"):
        (tmp_path / name).touch()
    with pytest.raises(KeyError, match=r"test\.jsonl and test\.ndjson are there: keep one"):
        find_json_lines(tmp_path, "test", KeyError)
