"""The command that looks into a model: which text it reads, and what it says of wrong flags."""

import types

import pytest

from experiments import command
from tests.experiments import modules

inspect = modules.of_command("inspect")


class Words:
    """A tokenizer of words, whose ids are their lengths."""

    def encode(self, text):
        return [2, *map(len, text.split())]

    def decode(self, tokens):
        return "x" * tokens[0]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command without a model, and returns what it would have drawn."""

    def give(prompt="", text="", *fields):
        config = command.Config("inspect", "inspect.py")
        config.load(command.config_files.split_arguments(fields)[0])
        monkeypatch.setattr(inspect, "_CONFIG", config)
        flags = {"prompt": prompt, "text": text, "output": str(tmp_path / "out")}
        for name, value in flags.items():
            flag = types.SimpleNamespace(value=value, name=name)
            monkeypatch.setattr(inspect, f"_{name.upper()}", flag)
        lm = types.SimpleNamespace(tokenizer=Words())
        monkeypatch.setattr(command, "load_model", lambda model, **options: lm)
        seen = []
        monkeypatch.setattr(inspect.page, "read", lambda lm, *given: given)
        monkeypatch.setattr(inspect.page, "write", lambda *given: seen.append(given) or [])
        inspect.main()
        ((reading, folder, title),) = seen
        assert folder == tmp_path / "out"
        return reading, title

    return give


def test_a_prompt_is_read_up_to_the_bound(run, capsys):
    (tokens, texts, token), title = run("one three seven", "", "--config.max_tokens=3")
    assert (tokens, texts, token) == ([2, 3, 5], ["xx", "xxx", "xxxxx"], 1)
    assert title == "griffin-tiny: one three seven" and not capsys.readouterr().err


def test_a_file_takes_the_place_of_a_prompt(run, tmp_path):
    (tmp_path / "text.txt").write_text("of a file")
    assert run("", str(tmp_path / "text.txt"))[1] == "griffin-tiny: of a file"
    with pytest.raises(ValueError, match="give the text as --prompt or as --text, not as both"):
        run("x", str(tmp_path / "text.txt"))
    (tmp_path / "text.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"--text=.*text.txt holds no text"):
        run("", str(tmp_path / "text.txt"))


def test_without_a_text_the_one_that_is_read_is_told(run, capsys):
    _, title = run()
    assert title.endswith(": It was a dark night, and the wind")
    assert "[no --prompt; reading 'It was a dark night, and the wind']" in capsys.readouterr().err
