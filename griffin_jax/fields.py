"""Types and bounds of numbers, declared with a config's field and checked in one place.

    @dataclasses.dataclass(frozen=True)
    class Settings:
        rows: int = field(8, at_least=1, at_most=4096)
        share: float | None = field(None, above=0, at_most=1)

        def __post_init__(self):
            check_fields(self)

A field's annotation says its type: bool, int, float, str, tuple[T, ...], dict, a dataclass, or any of
them with `| None`. `check_value` does the same for one argument of a call. Whatever comes from JSON, a
flag or a caller meets the same check, and a value that fails it is one line: the name, what would be
right, what was given.
"""

import ast
import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_BOUNDS = "bounds"
_LONGEST = 60  # characters of a value in a message
_NEAR = 1000  # an upper limit beyond this is told to those who pass it


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a value may be, beside its type. Numbers must be finite whatever the bounds.

    Attributes:
      at_least: Smallest number.
      above: Number that it must exceed.
      at_most: Largest number.
      below: Number that it must not reach.
      one_of: All values there are.
      also: Values outside of these bounds that are allowed, such as -1 for "the rest".
      filled: Text and sequences must hold something.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    one_of: tuple[Any, ...] | None = None
    also: tuple[Any, ...] = ()
    filled: bool = False

    def hold(self, value: Any) -> bool:
        """Returns whether a value of the right type lies within."""
        if self.one_of is not None:
            return value in self.one_of
        return not (
            (self.at_least is not None and value < self.at_least)
            or (self.above is not None and value <= self.above)
            or (self.at_most is not None and value > self.at_most)
            or (self.below is not None and value >= self.below)
        )

    def describe(self, value: Any) -> str:
        """Returns the bounds in words, such as "of at least 1"; empty where there are none.

        A limit that nobody comes near, and `value` neither, is left out.
        """
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        beyond = number and value > 0 and not self.hold(value)  # pyright: ignore[reportOperatorIssue]
        words = []
        for word, limit in (
            ("at least", self.at_least),
            ("above", self.above),
            ("at most", self.at_most),
            ("below", self.below),
        ):
            upper = word in ("at most", "below")
            if limit is not None and not (upper and limit > _NEAR and not beyond):
                words.append(f"{word} {limit:,}")
        text = " and ".join(words)
        return text if text.startswith(("above", "below")) or not text else f"of {text}"


_NO_BOUNDS = Bounds()


def field(default: Any = dataclasses.MISSING, **bounds: Any) -> Any:
    """Returns a dataclass field with `Bounds`, which are the keyword arguments.

    Args:
      default: The default; without one the field is required.
      **bounds: Fields of `Bounds`.
    """
    return dataclasses.field(default=default, metadata={_BOUNDS: Bounds(**bounds)})


def check_fields(config: Any, prefix: str = "") -> None:
    """Checks every field of a dataclass, also a frozen one, and stores what `check_value` returns.

    Args:
      config: The instance, from its `__post_init__`.
      prefix: What messages put before a field's name, such as "optimizer.".

    Raises:
      ValueError: a field has another type or lies outside of its bounds.
    """
    for entry in dataclasses.fields(config):
        value = _check(
            prefix + entry.name,
            getattr(config, entry.name),
            entry.type,
            entry.metadata.get(_BOUNDS, _NO_BOUNDS),
        )
        object.__setattr__(config, entry.name, value)


def check_values(schema: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Checks plain values, of a config file for example, against the fields of a dataclass.

    No instance is made, so what two fields say of each other is not looked at.

    Args:
      schema: The dataclass. Where a field of its own is one, its value may be a dict.
      values: Values by the names of the fields.
      prefix: What messages put before a name, such as "config.".

    Returns:
      A value for each field, defaults for those that were left out; dataclasses as dicts.

    Raises:
      ValueError: a name is unknown, a field without a default is missing, or a value is wrong.
    """
    entries = {entry.name: entry for entry in dataclasses.fields(schema)}
    check_names(prefix.removesuffix(".") or schema.__name__, values, entries)
    checked = {}
    for name, entry in entries.items():
        kind, _ = of_optional(entry.type)
        if name in values:
            value = values[name]
        elif entry.default is not dataclasses.MISSING:
            value = entry.default
        elif entry.default_factory is not dataclasses.MISSING:
            value = entry.default_factory()
        else:
            raise ValueError(f"{prefix}{name} is missing")
        if _is_config(kind) and isinstance(value, kind):
            value = {x.name: getattr(value, x.name) for x in dataclasses.fields(value)}
        if _is_config(kind) and isinstance(value, Mapping):
            checked[name] = check_values(kind, value, f"{prefix}{name}.")
        else:
            bounds = entry.metadata.get(_BOUNDS, _NO_BOUNDS)
            checked[name] = _check(f"{prefix}{name}", value, entry.type, bounds)
    return checked


def parse_text(text: str, kind: Any) -> Any:
    """Returns what a text on the command line stands for, as a value of a field's type.

    A text that is none is returned as it is, for `check_values` to refuse.
    """
    kind, optional = of_optional(kind)
    if optional and text in ("None", "none", "null"):
        return None
    if kind is str:
        return text
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    try:
        if kind in (int, float):
            return kind(text)
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    if kind is tuple or typing.get_origin(kind) is tuple:
        return tuple(value) if isinstance(value, tuple | list) else (value,)
    return value


def check_value(name: str, value: Any, kind: Any, **bounds: Any) -> Any:
    """Returns the value of an argument, with NumPy's and JAX's scalars as Python's own.

    Args:
      name: What the message calls it.
      value: What was given.
      kind: Its type, as a field's annotation would say it, such as `int | None`.
      **bounds: Fields of `Bounds`.

    Raises:
      ValueError: the type is another one or the value lies outside of its bounds. A bool is no
        number, text neither, and no number is NaN or infinite.
    """
    return _check(name, value, kind, Bounds(**bounds))


def check_names(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Checks that all names are known ones.

    Raises:
      ValueError: one is not; the message names the nearest that there is.
    """
    known = list(known)
    for name in given:
        if name not in known:
            raise ValueError(f"{what} has no field {shown(name)}; {nearest(str(name), known)}")


def nearest(name: str, known: Sequence[str]) -> str:
    """Returns what to say of an unknown name: the known one that is most like it, or all there
    are.
    """
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"there are {', '.join(known)}" if known else "there are none"


def shown(value: Any) -> str:
    """Returns a value as a message shows it: one line, not long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a repr of someone else's
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def of_optional(kind: Any) -> tuple[Any, bool]:
    """Returns the type of `T | None` and of T, and whether None is allowed."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind, kind is Any
    members = [member for member in typing.get_args(kind) if member is not type(None)]
    kind_of_rest = members[0] if len(members) == 1 else typing.Union[tuple(members)]  # noqa: UP007
    return kind_of_rest, len(members) < len(typing.get_args(kind))


def _check(name, value, kind, bounds):
    kind, optional = of_optional(kind)
    if value is None and optional:
        return None
    if isinstance(value, int | str) and not isinstance(value, bool) and value in bounds.also:
        return value
    good, value = _typed(name, value, kind)
    if good and (bounds.one_of is not None or kind in (int, float)):
        good = bounds.hold(value)
    if not good or (bounds.filled and not value):
        right = _describe(kind, bounds, value)
        more = [shown(x) for x in bounds.also] + ["None"] * optional
        right += ", or " * bool(more) + " or ".join(more)
        raise ValueError(f"{name} must be {right}, got {shown(value)}")
    return value


def _typed(name, value, kind):
    """Returns whether the value has the type, and the value as a plain one of it."""
    if kind in (int, float, bool):
        value = _scalar(value)
        if kind is bool or isinstance(value, bool):
            return kind is bool and isinstance(value, bool), value
        if not isinstance(value, numbers.Real):
            return False, value
        if kind is int:
            return isinstance(value, numbers.Integral), value
        try:
            return math.isfinite(value), value
        except OverflowError:  # a whole number beyond all floats
            return False, value
    if kind is str:
        return isinstance(value, str), value
    if kind is dict or typing.get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            return False, value
        if not typing.get_args(kind):
            return True, dict(value)
        _, member = typing.get_args(kind)  # names are texts everywhere
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{name} has {shown(key)} where a name belongs; give it as text")
        return True, {
            key: _check(f"{name}[{key!r}]", x, member, _NO_BOUNDS) for key, x in value.items()
        }
    if kind is tuple or typing.get_origin(kind) is tuple:
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            return False, value
        members = [member for member in typing.get_args(kind) if member is not ...]
        values = tuple(value)
        if members:
            values = tuple(
                _check(f"{name}[{i}]", x, members[0], _NO_BOUNDS) for i, x in enumerate(values)
            )
        return True, values
    if _is_config(kind):
        return isinstance(value, kind), value
    return True, value


def _scalar(value):
    """Returns NumPy's and JAX's scalars as Python's."""
    if isinstance(value, np.generic) or (
        hasattr(value, "item") and not isinstance(value, str | bytes) and np.ndim(value) == 0
    ):
        return value.item()
    return value


def _is_config(kind):
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _describe(kind, bounds, value):
    if bounds.one_of is not None:
        return "one of " + ", ".join(map(str, bounds.one_of))
    if kind is bool:
        return "true or false"
    if kind is str:
        return "text" + ", not empty" * bounds.filled
    if kind is int or kind is float:
        noun = "a whole number" if kind is int else "a number"
        return " ".join(filter(None, [noun, bounds.describe(value)]))
    if kind is dict or typing.get_origin(kind) is dict:
        return "a dict"
    if kind is tuple or typing.get_origin(kind) is tuple:
        return "a list" + ", not empty" * bounds.filled
    return f"a {getattr(kind, '__name__', kind)}"
