"""AGIEval's English multiple choice with examples, answers by letter.

The harness has no examples for it, and the authors' stand in their repository only. Here the
examples are the first other rows of the evaluated file: five, or three where each brings a passage.
"""


def letters(doc) -> list[str]:
    """Returns the letters of the choices."""
    return list("ABCDE"[: len(doc["choices"])])


def gold(doc) -> int:
    """Returns the index of the right choice."""
    return doc["gold"][0]
