"""`--help`: what a command does, its flags, and every field of its config, a line each."""

import dataclasses
import inspect
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from absl import flags

from experiments import config_files

if TYPE_CHECKING:
    from experiments.command import Config

_WORDS = ("help", "h", "helpshort", "helpfull", "?")


def is_asked_for(arguments: Sequence[str]) -> bool:
    """Returns whether a flag asks for help."""
    return any(x.startswith("-") and x.lstrip("-") in _WORDS for x in arguments)


def page(command: ModuleType, config: "Config | None") -> str:
    """Returns the text of `--help`: what a command does, its flags and its fields.

    Args:
      command: The module that was started.
      config: Its config; None where it has none.
    """
    lines = [inspect.cleandoc(command.__doc__ or "").rstrip()]
    own = flags.FLAGS.get_key_flags_for_module(command)
    lines += ["", "flags:"]
    rows = [(f"--{x.name}", x.value, x.help or "") for x in own]
    lines += _columns([*rows, ("--verbosity", "", "1 shows the traceback of an error.")])
    if config is not None:
        file = f"configs/{config.default}"
        lines += ["", f"--config=FILE, {file} unless given; its fields, --config.NAME=VALUE:"]
        lines += _columns(list(fields(config)))
    return "\n".join(lines)


def fields(config: "Config") -> list[tuple[str, Any, str]]:
    """Returns name, default and explanation of every field of a config, those of parts behind a
    dot.
    """
    from experiments import schemas
    from griffin_jax.fields import check_values

    path = config_files.CONFIGS / config.default
    values = config_files.read(path)
    schema = schemas.COMMANDS[config.command](values)
    notes = comments(path) | {
        name: text for name, text in attributes(schema).items() if name not in comments(path)
    }
    checked = check_values(schema, values, "config.")
    return list(_rows(schema, checked, notes, ""))


def _rows(schema, values, notes, prefix):
    from griffin_jax.fields import of_optional

    for entry in dataclasses.fields(schema):
        kind, _ = of_optional(entry.type)
        name, value = prefix + entry.name, values[entry.name]
        if dataclasses.is_dataclass(kind):
            inner = [x.name for x in dataclasses.fields(kind)]
            shown = ", ".join(inner)
            yield f"{name}.*", "" if value else "None", shown
        else:
            yield name, value, notes.get(entry.name, "")


def comments(path: Path) -> dict[str, str]:
    """Returns what a config file says in comments above `config.NAME = ...`; also those that it
    imports.
    """
    found = {}
    source = path.read_text(encoding="utf-8")
    for other in re.findall(r"^from configs(?:\.(\w+))? import (\w+)", source, re.MULTILINE):
        imported = path.with_name(f"{other[0] or other[1]}.py")
        if imported.is_file():
            found |= comments(imported)
    above: list[str] = []
    for line in source.splitlines():
        text = line.strip()
        if text.startswith("#"):
            above.append(text.lstrip("# "))
            continue
        match = re.match(r"config\.(\w+) = ", text)
        if match and above:
            found[match[1]] = " ".join(above)
        above = []
    return found


def attributes(schema: type) -> dict[str, str]:
    """Returns what the "Attributes:" of a dataclass and of those that it comes from say of each
    field.
    """
    found: dict[str, str] = {}
    for one in reversed(schema.__mro__):
        text = inspect.cleandoc(one.__doc__ or "")
        _, _, section = text.partition("Attributes:\n")
        for match in re.finditer(r"^  (\w+): (.+(?:\n {4,}.+)*)", section, re.MULTILINE):
            found[match[1]] = " ".join(match[2].split())
    return found


def _columns(rows: Sequence[tuple[str, Any, str]]) -> list[str]:
    """Returns lines of name, default and explanation that fit the terminal."""
    width = max(shutil.get_terminal_size((100, 0)).columns, 60)
    names = [f"  {name}{_default(value)}" for name, value, _ in rows]
    left = min(max(map(len, names), default=0), 44) + 2
    lines = []
    for name, (_, _, text) in zip(names, rows, strict=True):
        lines.append(_fitted(name.ljust(left), text, width))
    return lines


def _fitted(begin: str, text: str, width: int) -> str:
    """Returns a line with as many whole clauses of a text as there is room for, or else a part of the first."""
    clauses = re.split(r"(?<=[.;:])\s", text)
    room = width - len(begin)
    shown = clauses[0].rstrip(";:")
    for count in range(2, len(clauses) + 1):
        longer = " ".join(clauses[:count]).rstrip(";:")
        if len(longer) > room:
            break
        shown = longer
    return begin + (shown if len(shown) <= room else shown[: room - 4].rstrip() + " ...")


def _default(value: Any) -> str:
    """Returns "=" and a default, or of a long one its size or the part that says most."""
    if value is None or value == "":
        return ""
    text = repr(value) if not isinstance(value, str) else value
    text = " ".join(text.split())
    if len(text) <= 24:
        return f"={text}"
    if isinstance(value, Sequence | Mapping) and not isinstance(value, str):
        return f"={len(value)} {'entry' if len(value) == 1 else 'entries'}"
    # The end of a path tells which it is.
    return f"=... {text[-20:]}" if "/" in text else f"={text[:20]} ..."
