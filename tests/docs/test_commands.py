"""Every command line that pages and docstrings show has flags and fields that there are, with values that they take."""

import re
import shlex
from pathlib import Path

import pytest

from experiments import command, config_files

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path
    for folder in ("configs", "docs", "dev", "experiments", ".")
    for path in (ROOT / folder).glob("**/*" if folder != "." else "*")
    if path.suffix in (".md", ".py") and path.name != "CHANGELOG.md"
)
_LINE = re.compile(r"(?:python -m experiments\.|griffin-jax )(?P<name>[a-z_]+)(?P<rest>[^\n`]*)")
_DEFINED = re.compile(r'DEFINE_\w+\(\s*"(\w+)"')
_COMMON = {"help", "verbosity", "verbose"}
# What a page writes in place of a path, a name or a number, and where a command's own words end.
_END = re.compile(r"\s(?:#|&&|\||;|>|2>|and |\.\.\.)|\s{3,}|[;)]$")


def defined(name):
    """The command's flags, and the command and file of its config; None where it has none."""
    source = (ROOT / "experiments" / f"{name}.py").read_text(encoding="utf-8")
    flags = set(_DEFINED.findall(source)) | _COMMON
    if "adopt_module_key_flags(processes)" in source:
        flags |= set(
            _DEFINED.findall((ROOT / "experiments/processes.py").read_text(encoding="utf-8"))
        )
    config = re.search(r'define_config\("(\w+)", "([\w.]+)"\)', source)
    return flags, config and config.groups()


def shown():
    """File, command and words of each command line, without those that other commits have recorded."""
    for path in FILES:
        text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
        for longer in (r"`[^`\n]*\n[^`\n]*`", r'="\([^"]*\)"'):  # than a line
            text = re.sub(longer, lambda span: " ".join(span[0].split()), text)
        for match in _LINE.finditer(text):
            before = text[max(0, match.start() - 100) : match.start()]
            if "ecorded on" in before or "Command: " in before:
                continue
            rest = _END.split(match["rest"], maxsplit=1)[0]
            if rest.count('"') % 2:  # the whole command stands in quotes
                rest = rest.removesuffix('"')
            rest = re.sub(r"=N\b", "=1", rest)
            if (ROOT / "experiments" / f"{match['name']}.py").exists() and "=" in rest:
                yield pytest.param(
                    match["name"], rest, id=f"{path.relative_to(ROOT)}:{match['name']}"
                )


LINES = list(shown())


def test_command_lines_are_found():
    names = {line.values[0] for line in LINES}
    assert len(LINES) > 100
    assert {"sample", "train", "pack", "convert", "evaluate", "serve", "study"} <= names


@pytest.mark.parametrize(("name", "rest"), LINES)
def test_a_command_line_has_flags_and_fields_that_there_are(name, rest, capsys):
    flags, config = defined(name)
    choice, words = config_files.split_arguments(shlex.split(rest), flags)
    given = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    unknown = {x for x in given if x not in flags and x.removeprefix("no") not in flags}
    assert not unknown
    assert "is called" not in capsys.readouterr().err, "an older name of the model"
    if config is None:
        assert not choice.fields and choice.file is None
    elif choice.file is None or config_files.CONFIGS.joinpath(Path(choice.file).name).exists():
        pytest.importorskip("grain" if name in ("train", "study") else "jax")
        command.Config(*config).load(choice)
