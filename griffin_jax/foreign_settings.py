"""Settings that other programs wrote, judged by what they do.

A format has a table of rules, setting by setting. What changes results in a way that is not supported
is refused by name; what changes nothing passes: null, which stands for the default of the program
that wrote it, a value under which the setting does nothing, and a setting that no table knows and
that is off.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

Rule = Callable[[Any], bool]


def obeyed(value: Any) -> bool:
    """Accepts any value: the reader takes the setting and checks it."""
    return True


def without_effect(value: Any) -> bool:
    """Accepts any value: the setting changes no result here."""
    return True


def only(*values: Any) -> Rule:
    """Returns the rule of a setting that means what is done here, or nothing, at these values
    alone.
    """

    return _Only(values)


@dataclasses.dataclass(frozen=True)
class _Only:
    values: tuple[Any, ...]

    def __call__(self, value: Any) -> bool:
        return any(
            value == known and isinstance(value, bool) == isinstance(known, bool)
            for known in self.values
        )


def is_off(value: Any) -> bool:
    """Accepts what asks for nothing (null, false or empty), as unknown settings must."""
    return value is None or value is False or value in ("", [], (), {})


def read_settings(
    values: Any, rules: Mapping[str, Rule], what: str, unknown: Rule = is_off
) -> dict[str, Any]:
    """Returns the settings that a reader has to obey, without those that are null.

    Args:
      values: As the file has them.
      rules: The rules of the settings that are known, by name.
      what: Names the file in errors.
      unknown: The rule of settings that `rules` do not name.

    Raises:
      ValueError: `values` is no object, or some of them change results and are not supported.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} must be a JSON object, got {values!r:.80}")
    refused = [
        f"{name}={value!r:.80}{_instead(rules.get(name))}"
        for name, value in values.items()
        if value is not None and not rules.get(name, unknown)(value)
    ]
    if refused:
        raise ValueError(
            f"{what}: {', '.join(refused)}: changes what is computed and is not supported"
        )
    return {
        name: value
        for name, value in values.items()
        if value is not None and rules.get(name) is obeyed
    }


def _instead(rule: Rule | None) -> str:
    if rule is None:
        return " (an unknown setting)"
    if not isinstance(rule, _Only):
        return ""
    return f" (only {' or '.join(map(repr, rule.values))} is)"
