"""TriviaQA and Natural Questions: one line of answer, compared as the benchmarks compare it.

Both papers count an answer as right if it equals one of the accepted ones after lower-casing and
without punctuation, articles and doubled spaces (SQuAD's normalization, arXiv:1606.05250).
"""

import re
import string

_PUNCTUATION = str.maketrans(
    dict.fromkeys(string.punctuation + "\u2018\u2019\u201c\u201d\u00b4", " ")
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized(answer: str) -> str:
    """Returns the text in lower case, without punctuation, articles and doubled spaces."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def _match(generated: str, accepted: list[str]) -> dict:
    answer = normalized(generated.strip().split("\n")[0])
    return {"exact_match": float(answer in {normalized(one) for one in accepted})}


def triviaqa_target(doc) -> str:
    """Returns the answer that an example shows: the canonical one, not the first alias."""
    return doc["answer"]["value"]


def triviaqa_results(doc, results):
    """Returns whether the first line is the answer or one of its aliases."""
    return _match(results[0], [doc["answer"]["value"], *doc["answer"]["aliases"]])


def nq_open_target(doc) -> str:
    """Returns the answer that an example shows: the first of those accepted."""
    return doc["answer"][0]


def nq_open_results(doc, results):
    """Returns whether the first line is one of the accepted answers."""
    return _match(results[0], doc["answer"])
