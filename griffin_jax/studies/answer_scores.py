"""Scores of generated answers: exact match and F1 over words, as SQuAD and LongBench count them."""

import collections
from collections.abc import Sequence

from griffin_jax.evaluation.tasks.short_answers import normalized


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """Returns 1.0 where an answer is one of those accepted, up to SQuAD's normalization; else 0.0."""
    return float(normalized(answer) in {normalized(one) for one in accepted})


def f1(answer: str, accepted: Sequence[str]) -> float:
    """Returns the best F1 between the normalized words of an answer and of those accepted.

    It is the harmonic mean of precision and recall of words, each counted as often as it comes in both
    (arXiv:1606.05250). Two answers without a word are the same.
    """
    return max(_f1(normalized(answer).split(), normalized(one).split()) for one in accepted)


def _f1(found, right):
    common = sum((collections.Counter(found) & collections.Counter(right)).values())
    total = len(found) + len(right)
    return 2 * common / total if total else 1.0
