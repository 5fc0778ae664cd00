"""The command that carries out studies: its list, and one of the smallest from end to end."""

import json
import types

import pytest

from experiments import command
from tests.experiments import modules

study = modules.of_command("study")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command with a config, and returns the folder that it has written into."""

    def give(
        file="study_selective_copying.py:tiny",
        listed=False,
        page=False,
        part="1/1",
        minutes=None,
        given=None,
    ):
        config = command.Config("study", "study_selective_copying.py")
        choice, _ = command.config_files.split_arguments([f"--config=configs/{file}"])
        config.load(choice)
        config.value.update(given or {})
        flags = {
            "_RUN": tmp_path / "run",
            "_OUTPUT": tmp_path / "out",
        }
        flags = {name: str(value) for name, value in flags.items()} | {"_MINUTES": minutes}
        for name, value in (flags | {"_LIST": listed, "_PAGE": page, "_PART": part}).items():
            monkeypatch.setattr(study, name, types.SimpleNamespace(value=value, name=name))
        monkeypatch.setattr(study, "_CONFIG", config)
        study.main()
        return tmp_path / "out"

    return give


def test_the_list_has_every_study_by_its_title(run, capsys):
    run(listed=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 14 and all(line.startswith("configs/study_") for line in lines)
    assert "configs/study_induction_heads.py: Induction heads (figure 6b)" in lines


@pytest.mark.slow
def test_the_smallest_study_leaves_its_page(run, monkeypatch):
    pytest.importorskip("matplotlib")
    given = ["--config=some.py:tiny", "--minutes=9", "--part=1/1", "--run=there"]
    monkeypatch.setattr("sys.argv", ["study", *given])
    folder = run()
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"selective_copying_tiny{x}" for x in ("-curves.png", ".json", ".md")]
    found = json.loads((folder / "selective_copying_tiny.json").read_text(encoding="utf-8"))
    assert found["kind"] == "trained" and len(found["results"]) == 1
    assert found["recorded"]["date"] and found["command"] == found["recorded"]["command"]
    assert found["command"] == "python -m experiments.study --config=some.py:tiny"
    page = folder / "selective_copying_tiny.md"
    before = page.read_text(encoding="utf-8")
    page.unlink()
    run(page=True)
    assert page.read_text(encoding="utf-8") == before
    words = before + "\n## What is seen\n\nNothing.\n"
    page.write_text(words, encoding="utf-8")
    run(page=True)
    assert page.read_text(encoding="utf-8") == words


def test_what_a_person_wrote_at_the_end_of_a_page_is_found(tmp_path):
    page = tmp_path / "some.md"
    assert study._words(page) == ""
    page.write_text("# Some\n\n| a |\n", encoding="utf-8")
    assert study._words(page) == ""
    page.write_text("# Some\n\n| a |\n\n## What is seen\n\nOne.\n\nTwo.\n", encoding="utf-8")
    assert study._words(page) == "## What is seen\n\nOne.\n\nTwo.\n"


@pytest.mark.parametrize("part", ["3/2", "0/1", "1", "a/b"])
def test_a_part_that_is_none_is_one_line(run, part):
    with pytest.raises(ValueError, match=f"--part '{part}' must be K/N with K from 1 to N"):
        run(part=part)


@pytest.mark.parametrize("size, trained", [("tiny", "phonebook"), ("needle_tiny", "needle")])
def test_models_that_were_not_trained_yet_are_named_with_their_study(run, size, trained):
    message = (
        f"the runs are not done; carry out --config=study_{trained}.py:tiny first, with the same"
    )
    with pytest.raises(FileNotFoundError, match=message):
        run(f"study_long_documents.py:{size}")


@pytest.mark.slow
def test_the_smallest_needle_is_trained_and_looked_for_in_chunks(run):
    pytest.importorskip("matplotlib")
    run("study_needle.py:tiny")
    folder = run("study_long_documents.py:needle_tiny")
    found = json.loads((folder / "long_documents_needle_tiny.json").read_text(encoding="utf-8"))
    assert [(row["chunks"], row["tokens"]) for row in found["rows"]] == [(1, 18), (2, 34)]


def test_lines_and_models_that_are_not_there_are_named(run, tmp_path):
    for given, message in (
        ({"lines": str(tmp_path / "none.jsonl")}, "none.jsonl: there is no such file"),
        ({"model": str(tmp_path / "none")}, "no folder .*none: give a checkpoint's folder"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            run("study_long_answers.py:tiny", given=given)


@pytest.mark.slow
def test_the_smallest_lines_are_answered_and_kept(run):
    pytest.importorskip("matplotlib")
    folder = run("study_long_answers.py:tiny")
    path = folder / "long_answers_tiny.json"
    first = json.loads(path.read_text(encoding="utf-8"))
    assert first["total"] == 1 and first["rows"][0]["sizes"][0]["chunks"] == 2
    run("study_long_answers.py:tiny", minutes=0)
    assert json.loads(path.read_text(encoding="utf-8"))["rows"] == first["rows"]


@pytest.mark.slow
def test_the_smallest_look_into_griffin_tiny_leaves_its_page(run):
    pytest.importorskip("matplotlib")
    folder = run("study_memory.py:tiny")
    assert "By memory length" in (folder / "memory_tiny.md").read_text(encoding="utf-8")
