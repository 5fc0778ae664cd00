"""Claims: met, not met and not reached; and a claim that is none."""

import pytest

from griffin_jax.studies import claims

VALUES = {("accuracy", "a"): 0.5, ("accuracy", "b"): 0.25, ("steps", "a"): 1200.0}


def lookup(*quantity):
    return VALUES.get(quantity)


@pytest.mark.parametrize(
    "conditions, verdict, figures",
    [
        ([[("accuracy", "a"), ">=", 0.5]], "holds", "a: 50.0%"),
        ([[("accuracy", "a"), ">", 0.5]], "does not hold", "a: 50.0%"),
        ([[("accuracy", "a"), ">", 2.0, ("accuracy", "b")]], "does not hold", "a: 50.0%; b: 25.0%"),
        ([[("accuracy", "a"), "<=", 2.0, ("accuracy", "b")]], "holds", "a: 50.0%; b: 25.0%"),
        ([[("steps", "c"), "<", 5]], "not reached", "c: steps not reached"),
        (
            [[("steps", "a"), "<", 5], [("steps", "c"), "<", 5]],
            "does not hold",
            "a: steps 1,200; c: steps not reached",
        ),
        ([[("steps", "a"), ">", 5], [("steps", "c"), "<", 5]], "not reached", None),
    ],
)
def test_the_verdict_is_that_of_all_conditions(conditions, verdict, figures):
    (found,) = claims.judge([{"says": "x", "if": conditions}], lookup)
    assert (found["says"], found["verdict"]) == ("x", verdict)
    assert figures is None or found["figures"] == figures
    assert f"**{verdict}**" in claims.table({"verdicts": [found]})
    page = claims.summary({"some": {"title": "t", "device": "d", "verdicts": [found]}})
    assert f"| [t](some.md) | x | **{verdict}** |" in page


def test_nothing_is_reached_where_something_is_not_given():
    claim = {"says": "x", "if": [[("accuracy", "a"), "<", 0.1]]}
    for given, verdict in ((0.2, "does not hold"), (0.6, "not reached")):
        conditions = [[("accuracy", "a"), ">", given]]
        (found,) = claims.judge([claim | {"given": conditions}], lookup)
        assert found["verdict"] == verdict


def test_what_is_missing_might_decide_a_claim():
    claim = {"says": "x", "if": [[("accuracy", "a"), ">", 1.0, ("accuracy", "b")]]}
    for of, verdict in (("a", "not finished"), ("b", "not finished"), ("c", "holds")):
        (found,) = claims.judge([claim], lookup, lambda what, model: model != of)  # noqa: B023
        assert found["verdict"] == verdict


@pytest.mark.parametrize(
    "quantity, value, words",
    [
        (("loss at", "a", "wide", 4096), 1.5, "a, wide: loss at 4,096 = 1.500"),
        (("loss over", "a", "", "b"), 1.5, "a: loss over b = 1.500"),
        (("loss at step", "a", 10), None, "a: loss at step 10 not reached"),
    ],
)
def test_a_figure_names_what_it_is_of(quantity, value, words):
    claim = {"says": "x", "if": [[quantity, "<", 1.0]]}
    (found,) = claims.judge([claim], lambda *_: value)
    assert found["figures"] == words


@pytest.mark.parametrize(
    "claim, message",
    [
        ({"says": "x"}, "a claim has says and if"),
        ({"says": "x", "if": ()}, "with a condition or more"),
        ({"says": "x", "if": [[("a",), "=", 5]]}, "one of < <= > >="),
        ({"says": "x", "if": [[("a",), "<"]]}, "a condition is a quantity"),
        ({"says": "x", "if": [3]}, "a condition is a quantity"),
        ({"says": "x", "if": ["a<5"]}, "a condition is a quantity"),
        ({"says": "x", "if": [["a", "<", 5]]}, "a condition is a quantity"),
        ({"says": "x", "if": [[("a",), "<", "5"]]}, "a condition is a quantity"),
        ({"says": "x", "if": 3}, "if of a claim must be a list, got 3"),
        ({"says": "x", "if": [[("a",), "<", 1]], "given": [[("a",)]]}, "a condition is a quantity"),
        ({"says": "x", "if": [[("a",), "<", 1]], "unless": ()}, "a claim has says and if"),
    ],
)
def test_what_is_no_claim_is_one_line(claim, message):
    with pytest.raises(ValueError, match=message) as caught:
        claims.check_claims([claim])
    assert "\n" not in str(caught.value)
