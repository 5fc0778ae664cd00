"""Statements of a paper, put to the test of what was found."""

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from griffin_jax import markdown
from griffin_jax.fields import shown

HOLDS, FAILS, MISSING, UNFINISHED = "holds", "does not hold", "not reached", "not finished"
# From what a quantity is called to its value; None where it was not reached.
Lookup = Callable[..., float | None]
# From what a quantity is called to whether the runs that it is of have ended.
Ended = Callable[..., bool]
# Quantities that are of something else, which their last part names.
_OF_ANOTHER = ("loss at", "loss at step", "loss of", "loss over")
_RELATIONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on a statement.

    Attributes:
      says: The statement.
      verdict: "holds", "does not hold", "not reached" where a model came to no such figure, or "not
        finished" where runs that the figures are of have not ended.
      figures: The numbers that decided it.
    """

    says: str
    verdict: str
    figures: str


def check_claims(claims: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError for a claim that is not one.

    A claim is a dict of `says`, its words, `if`, a list of conditions that must all be met, and maybe
    `given`, conditions without which nothing is reached, such as that a task was learned at all. A
    condition is a quantity (a list, which a study's lookup knows), a relation, and a number, or a
    number and another quantity, which it multiplies.
    """
    for claim in claims:
        if {"says", "if"} != set(claim) - {"given"} or not claim["if"]:
            raise ValueError(
                f"a claim has says and if, with a condition or more; got {dict(claim)}"
            )
        for name in ("if", "given"):
            conditions = claim.get(name, ())
            if not _is_list(conditions):
                raise ValueError(f"{name} of a claim must be a list, got {shown(conditions)}")
            for condition in conditions:
                if not _is_condition(condition):
                    raise ValueError(
                        "a condition is a quantity, one of < <= > >=, a number, and maybe another "
                        f"quantity; got {shown(condition)}"
                    )


def quantities_of(claim: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    """Yields the quantities of a claim's conditions."""
    for quantity, _, _, *other in itertools.chain(claim["if"], claim.get("given", ())):
        yield quantity
        yield from other


def _is_list(value):
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_condition(value):
    if not _is_list(value) or len(value) not in (3, 4):
        return False
    quantity, relation, number, *other = value
    return (
        all(_is_list(part) and part for part in (quantity, *other))
        and relation in tuple(_RELATIONS)
        and isinstance(number, int | float)
    )


def judge(
    claims: Sequence[Mapping[str, Any]], lookup: Lookup, ended: Ended = lambda *quantity: True
) -> list[dict[str, str]]:
    """Returns the verdict on each claim, the fields of a `Verdict`, ready for JSON.

    Args:
      claims: The statements.
      lookup: Gives a quantity's value.
      ended: Says whether the runs that a quantity is of have ended. A claim of others is not judged:
        seeds and sizes that are missing might decide it.
    """
    return [dataclasses.asdict(_judge(claim, lookup, ended)) for claim in claims]


def _judge(claim, lookup, ended):
    met, figures = _met(claim["if"], lookup)
    given, why = _met(claim.get("given", ()), lookup)
    if not all(ended(*quantity) for quantity in quantities_of(claim)):
        return Verdict(claim["says"], UNFINISHED, "; ".join(dict.fromkeys(why + figures)))
    if not all(given):
        return Verdict(claim["says"], MISSING, "; ".join(dict.fromkeys(why + figures)))
    verdict = FAILS if False in met else MISSING if None in met else HOLDS
    return Verdict(claim["says"], verdict, "; ".join(dict.fromkeys(figures)))


def _met(conditions, lookup):
    """Returns which conditions are met, None where that is not known, and the figures that say so."""
    met, figures = [], []
    for quantity, relation, number, *other in conditions:
        left = lookup(*quantity)
        right = lookup(*other[0]) if other else 1.0
        figures.append(_in_words(quantity, left))
        if other:
            figures.append(_in_words(other[0], right))
        if left is not None and right is not None:
            met.append(_RELATIONS[relation](left, number * right))
        else:
            met.append(None)
    return met, figures


def _in_words(quantity, value):
    what, *of = quantity
    equals = ""
    if what in _OF_ANOTHER:
        *of, last = of
        what += f" {last:,}" if isinstance(last, int) else f" {last}"
        equals = " ="
    name = ", ".join(str(x) for x in of if x != "")
    if value is None:
        return f"{name}: {what} not reached"
    if what == "accuracy":
        return f"{name}: {value:.1%}"
    return (
        f"{name}: {what}{equals} {value:,.0f}"
        if value >= 100
        else f"{name}: {what}{equals} {value:.3f}"
    )


def table(found: Mapping[str, Any]) -> str:
    """Returns the "verdicts" of a study as a table in Markdown; "" of none."""
    rows = [[x["says"], f"**{x['verdict']}**", x["figures"]] for x in found.get("verdicts", ())]
    head = ["statement", "verdict", "figures"]
    return markdown.table(head, rows, numbers=False) if rows else ""


def summary(studies: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a page with the verdicts of studies, which it is given by their names."""
    rows = [
        [f"[{found['title']}]({name}.md)", x["says"], f"**{x['verdict']}**", x["figures"]]
        for name, found in studies.items()
        for x in found["verdicts"]
    ]
    head = ["study", "statement", "verdict", "figures"]
    devices = sorted({found["device"] for found in studies.values()})
    lines = [
        "# Verdicts",
        "What the papers say, and what their studies found here on a small scale. Every page says what "
        'was run shorter than in the paper, by which command, and on what. A statement is "not reached" where '
        'no model came to such a figure, and "not finished" where runs that would decide it are missing.',
        markdown.table(head, rows, numbers=False),
        f"On {'; '.join(devices)}.",
    ]
    return "\n\n".join(lines) + "\n"
