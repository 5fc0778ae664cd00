"""GSM8K by the protocol that Google published with RecurrentGemma (colabs/gsm8k_eval.ipynb).

Eight worked examples of the chain-of-thought paper (arXiv:2201.11903) in the colab's wording,
which `gsm8k_examples.jsonl` holds (Apache-2.0, DeepMind Technologies Limited), greedy decoding of
1,024 tokens, cut at the next question. The answer is the first number after the last "The answer
is", else the last number. The colab states 19.33 % for the 2B model.
"""

import re
from pathlib import Path

from griffin_jax.text_files import TextFile

_NUMBER = re.compile(r"-?[\d,]*\.?\d+")
_MARK = "The answer is"


def examples() -> list[dict]:
    """Returns the eight worked examples."""
    file = TextFile(Path(__file__).with_name("gsm8k_examples.jsonl"))
    return [example for _, example in file.records()]


def target(doc) -> str:
    """Returns the whole solution that an example shows."""
    return doc["answer"]


def answer_of(text: str) -> str:
    """Returns the number that a solution ends in, without thousands separators; "" if there is
    none.
    """
    _, mark, last = text.rpartition(_MARK)
    if mark and (after := _NUMBER.search(last)):
        return after[0].replace(",", "")
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else ""


def results(doc, results):
    """Returns whether the answer is the solution's number; what follows the next "Q:" is cut off."""
    found, expected = answer_of(results[0].split("\nQ:")[0]), answer_of(doc["answer"])
    return {"exact_match": float(bool(found) and float(found) == float(expected))}
