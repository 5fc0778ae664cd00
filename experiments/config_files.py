"""From a config file and flags to a checked config: `--config=FILE[:ARGUMENT]`, `--config.FIELD=VALUE`.

A config file is Python and defines `get_config()`, which returns a `ml_collections.ConfigDict`. Which
fields a command's config has, of what types and within what bounds, says a dataclass of `schemas`:
every one of them is a flag, whether the file sets it or not.
"""

import dataclasses
import importlib.util
import inspect
import re
import sys
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

# The checkout, or where a wheel has the same two folders (see griffin_jax/console.py).
ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
# A text that is there wherever the package is: the model card of griffin-tiny.
CARD = (
    Path(importlib.util.find_spec("griffin_jax").origin).with_name("assets")
    / "griffin-tiny/README.md"
)
_FLAG = re.compile(r"--?(no)?config(\.[A-Za-z_][\w.]*)?(=.*)?", re.DOTALL)
# Every command calls the model that it reads `model`. Commands and recorded figures from before that
# call it a checkpoint.
_MODEL = re.compile(r"--?(config\.)?(?P<name>model|checkpoint)(?P<value>=.*)?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Choice:
    """The part of a command line that is about the config.

    Attributes:
      file: The config file; None for the command's default.
      argument: What stands behind its colon, for `get_config`; None for nothing.
      fields: Fields that were set, in order: path and text; None for a bare --config.FIELD.
    """

    file: str | None
    argument: str | None
    fields: tuple[tuple[str, str | None], ...]


def split_arguments(argv: Sequence[str], flags: Container[str] = ()) -> tuple[Choice, list[str]]:
    """Returns what a command line says of the config, and all the rest of it.

    The model has one name, --config.model, or --model where a command has no config. Each is taken for
    the other, and so is --checkpoint, the model's name in earlier versions, which a line tells.

    Args:
      argv: The command line behind the command's name.
      flags: Names of flags that the command has itself.

    Raises:
      ValueError: --config has no value, or a field is written in a wrong way.
    """
    file, fields, rest = None, [], []
    arguments = list(argv)
    while arguments:
        text = _with_one_name(arguments.pop(0), flags)
        match = _FLAG.fullmatch(text)
        if text == "--":
            rest += [text, *arguments]
            break
        if match is None:
            rest.append(text)
            continue
        negated, field, value = match.groups()
        value = None if value is None else value[1:]
        if negated:
            if not field or value is not None:
                raise ValueError(
                    f"{text}: write --noconfig.FIELD, of a field that is true or false"
                )
            fields.append((field[1:], "false"))
            continue
        # As absl has it, the value may be the next word; a bare field means true.
        if value is None and arguments and not arguments[0].startswith("-"):
            value = arguments.pop(0)
        if field:
            fields.append((field[1:], value))
        elif not value:
            raise ValueError("--config takes a file, such as --config=configs/sample.py")
        else:
            file = value
    argument = None
    if file is not None and not Path(file).expanduser().exists():
        head, colon, tail = file.rpartition(":")
        if colon and head:
            file, argument = head, tail
    return Choice(file, argument, tuple(fields)), rest


def _with_one_name(word, flags):
    match = _MODEL.fullmatch(word)
    if match is None or (match["name"] in flags and not match[1]):
        return word
    name = "--model" if "model" in flags else "--config.model"
    if match["name"] == "checkpoint":
        written = word.partition("=")[0]
        print(f"[{written} is called {name} now]", file=sys.stderr, flush=True)
    return name + (match["value"] or "")


def load(choice: Choice, default: str, schema_of: Any, commands: Mapping[str, Any]) -> dict:
    """Returns the checked values of a config.

    Args:
      choice: What the command line says.
      default: Name of the command's own file in configs/.
      schema_of: Gives the dataclass of a config's values.
      commands: The other commands' `schema_of`, to name the one that a config belongs to.

    Raises:
      ValueError: the file is none, its config is another command's, a field is unknown or a value
        is wrong.
      FileNotFoundError: there is no such file.
    """
    path = CONFIGS / default if choice.file is None else find(choice.file)
    values = read(path, choice.argument)
    if "checkpoint" in values:
        raise ValueError(f"--config={path}: config.checkpoint is called config.model now")
    _check_owner(path, values, schema_of, commands)
    schema = schema_of(values)
    for name, text in choice.fields:
        _set(values, schema, name, text)
    from griffin_jax.fields import check_values

    return check_values(schema, values, "config.")


def find(file: str) -> Path:
    """Returns the config file of a name: a path, or one of configs/ as NAME, NAME.py or configs/NAME.py.

    A file that is there by that path comes first.

    Raises:
      FileNotFoundError: there is none; the message tells of one that is called alike.
      ValueError: it is a folder, or no path.
    """
    from griffin_jax.fields import nearest
    from griffin_jax.paths import resolve

    path = Path(resolve(file, "--config"))
    if path.exists() and not path.is_dir():
        return path
    known = {one.stem: one for one in sorted(CONFIGS.glob("[!_]*.py"))}
    bare = Path(file).parent in (Path(), Path("configs")) and path.suffix in ("", ".py")
    if bare and path.stem in known:
        return known[path.stem]
    if path.is_dir():
        raise ValueError(f"--config={file} is a folder; name a file, such as configs/sample.py")
    hint = nearest(path.stem, list(known))  # without what all of them have in common
    hint = re.sub(r"(?<=did you mean )(\w+)", r"configs/\1.py", hint)
    told = f"; {hint}" if bare or "did you mean" in hint else ""
    raise FileNotFoundError(f"--config={file}: there is no such file{told}")


def read(path: Path, argument: str | None = None) -> dict[str, Any]:
    """Returns the values that a config file's `get_config` returns, as plain ones.

    Raises:
      ValueError: it is no config file, or it fails.
    """
    try:
        source = path.read_bytes()
        code = compile(source, str(path), "exec")
    except (SyntaxError, ValueError) as error:  # ValueError for bytes that are no source at all
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise ValueError(f"--config={path}{line}: no config file in Python ({reason})") from None
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # configs/ import each other
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    )
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:  # whatever a user's file does
        raise ValueError(f"--config={path}: it fails: {_told(error)}") from error
    function = getattr(module, "get_config", None)
    if not callable(function):
        raise ValueError(f"--config={path} defines no get_config(), so it is no config file")
    if argument is not None and not inspect.signature(function).parameters:
        raise ValueError(f"--config={path} takes nothing behind a colon, got {argument!r}")
    try:
        config = function() if argument is None else function(argument)
    except (Exception, SystemExit) as error:
        text = str(error) if isinstance(error, ValueError) else _told(error)
        raise ValueError(f"--config={path}: {text}") from error
    if not isinstance(config, Mapping) and not hasattr(config, "to_dict"):
        raise ValueError(
            f"--config={path}: get_config() returned {config!r:.60}; it must return a ConfigDict"
        )
    return _plain(config)


def _told(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _plain(value):
    """Returns dicts of dicts, with the values of references in place of them."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(name): _plain(x) for name, x in value.items()}
    return value


def _check_owner(path, values, schema_of, commands):
    """Raises ValueError where the fields of a config are those of another command's."""
    names = _names(schema_of(values))
    strange = [name for name in values if name not in names]
    if not strange:
        return
    for command, other in commands.items():
        try:
            known = _names(other(values))
        except ImportError:  # an extra that is not installed
            continue
        if not [name for name in values if name not in known]:
            raise ValueError(f"--config={path} is a config of experiments.{command}")
    from griffin_jax.fields import check_names

    check_names(f"--config={path}: a config of this command", strange, names)


def _names(schema):
    return [entry.name for entry in dataclasses.fields(schema)]


def _set(values, schema, name, text):
    """Sets the field of a path such as "mesh.model" to what a text stands for."""
    from griffin_jax.fields import check_names, of_optional, parse_text

    *parents, last = name.split(".")
    where = "--config"
    for parent in parents:
        check_names(where, [parent], _names(schema))
        where += f".{parent}"
        kind, _ = of_optional(_kind(schema, parent))
        if values.get(parent) is None:
            values[parent] = {}
        if dataclasses.is_dataclass(values[parent]):
            values[parent] = dataclasses.asdict(values[parent])
        if not isinstance(values[parent], dict):
            raise ValueError(f"{where} has no fields of its own")
        values = values[parent]
        if not dataclasses.is_dataclass(kind):
            # A dict of anything: what it may hold is known to those who read it.
            schema = None
            break
        schema = kind
    if schema is None:
        rest = name.split(".")[len(where.split(".")) - 1 :]
        for parent in rest[:-1]:
            values = values.setdefault(parent, {})
        values[rest[-1]] = parse_text("true" if text is None else text, Any)
        return
    check_names(where, [last], _names(schema))
    kind = _kind(schema, last)
    if text is None:
        if of_optional(kind)[0] is not bool:
            raise ValueError(f"--config.{name} takes a value: --config.{name}=VALUE")
        text = "true"
    value = parse_text(text, kind)
    inner = of_optional(kind)[0]
    if dataclasses.is_dataclass(inner) and isinstance(value, str):
        hint = f"--config.{name} has fields of its own, such as --config.{name}.{_names(inner)[0]}"
        if name == "model" and "init_from" in _names(schema):  # a shape, not a folder
            hint += "; the model to begin with is --config.init_from"
        raise ValueError(hint)
    values[last] = value


def _kind(schema, name):
    return next(entry.type for entry in dataclasses.fields(schema) if entry.name == name)
