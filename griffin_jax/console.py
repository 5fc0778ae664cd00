"""The console script `griffin-jax COMMAND`, which runs what `python -m experiments.COMMAND` runs.

A checkout has experiments/ and configs/ at its root. A wheel carries them in griffin_jax/commands/
(setup.py says so), where they take no name of their own in site-packages. This module finds the folder
that holds both and puts it on the import path of its own process.
"""

import ast
import importlib
import sys
import textwrap
from pathlib import Path

import griffin_jax
from griffin_jax.fields import nearest

_PACKAGE = Path(__file__).parent
_LAST_LINE = "command.run(main)"  # what makes a file of experiments/ a command
_HELP = ("--help", "-h", "--helpfull", "help")


def main() -> None:
    """Runs the command that the first argument names; the others are its flags."""
    folder = find_commands()
    commands = summaries(folder / "experiments")
    name, *_ = [*sys.argv[1:], "--help"]
    if name in _HELP:
        print(overview(commands, folder / "configs"))
        return
    if name == "--version":
        print(griffin_jax.__version__)
        return
    command = name.replace("-", "_")
    if command not in commands:
        what = "begin with a command" if name.startswith("-") else f"there is no command {name!r}"
        print(f"error: {what}; {nearest(command, list(commands))}", file=sys.stderr)
        sys.exit(1)
    del sys.argv[1]
    sys.path.insert(0, str(folder))
    importlib.import_module("experiments.guard").begin()
    module = importlib.import_module(f"experiments.{command}")
    importlib.import_module("experiments.command").run(module.main)


def find_commands() -> Path:
    """Returns the folder that holds experiments/ and configs/: the wheel's own, or the checkout."""
    for folder in (_PACKAGE / "commands", _PACKAGE.parent):
        if (folder / "experiments" / "command.py").is_file() and (folder / "configs").is_dir():
            return folder
    sys.exit(
        f"error: {_PACKAGE} has no commands beside it; install griffin_jax again, as a wheel or "
        "with pip install -e from a checkout"
    )


def summaries(folder: Path) -> dict[str, str]:
    """Returns the first sentence of every command in a folder, by its name; nothing is imported."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if source.rstrip().endswith(_LAST_LINE):
            text = ast.get_docstring(ast.parse(source)) or ""
            found[path.stem] = text.partition("\n\n")[0].replace("\n", " ")
    return found


def overview(commands: dict[str, str], configs: Path) -> str:
    """Returns the page that lists the commands and the configs that ship with them."""
    width = max(map(len, commands))
    files = sorted(configs.glob("*.py"))
    names = [path.stem for path in files if "def get_config(" in path.read_text(encoding="utf-8")]
    return "\n".join(
        [
            f"griffin_jax {griffin_jax.__version__}: griffin-jax COMMAND [--FLAG=VALUE ...]",
            "",
            *(f"  {name.ljust(width)}  {text}" for name, text in commands.items()),
            "",
            "griffin-jax COMMAND --help lists its flags and the fields of its config.",
            "--config=FILE takes a file of yours, or one of these by name:",
            textwrap.fill(", ".join(names), 98, initial_indent="  ", subsequent_indent="  "),
        ]
    )
