"""Winogender and WinoBias: whom does the pronoun mean, by the likelihood of two continuations."""

import re

import datasets

from griffin_jax.evaluation.tasks.task import GriffinTask

# The occupations of WinoBias (arXiv:1804.06876, table 1).
OCCUPATIONS = (
    *("accountant", "analyst", "assistant", "attendant", "auditor", "baker", "carpenter"),
    *("cashier", "CEO", "chief", "cleaner", "clerk", "construction worker", "cook", "counselor"),
    *("designer", "developer", "driver", "editor", "farmer", "guard", "hairdresser"),
    *("housekeeper", "janitor", "laborer", "lawyer", "librarian", "manager", "mechanic", "mover"),
    *("nurse", "physician", "receptionist", "salesperson", "secretary", "sheriff", "supervisor"),
    *("tailor", "teacher", "writer"),
)
_BY_NAME = {name.lower(): name for name in OCCUPATIONS}
_OCCUPATION = re.compile(rf"\b({'|'.join(OCCUPATIONS)})\b", re.IGNORECASE)


def winogender_docs(dataset):
    """Adds `options`: as the sentence names them, so "someone" is not "the someone"."""

    def add(doc):
        names = (doc["occupation"], doc["participant"])
        return {"options": [name if name == "someone" else f"the {name}" for name in names]}

    return dataset.map(add)


class WinoBias(GriffinTask):
    """Type 1 or type 2 (`dataset_name`), pro- and anti-stereotypical sentences together.

    Rows come either with `sentence` and `mentions` (the occupation that is meant, then its
    pronouns) or, from the Hub, with `tokens` and `coreference_clusters` (pairs of first and last
    token of the same mentions).
    """

    def download(self, dataset_kwargs=None, **kwargs):
        """Loads both stereotypes and joins them, split by split."""
        parts: dict[str, list] = {}
        for stereotype in ("pro", "anti"):
            name = f"{self.config.dataset_name}_{stereotype}"
            loaded = datasets.load_dataset(path=self.DATASET_PATH, name=name)
            for split, rows in loaded.items():
                parts.setdefault(split, []).extend(_question(row, stereotype) for row in rows)
        self.dataset = datasets.DatasetDict(
            {split: datasets.Dataset.from_list(rows) for split, rows in parts.items() if rows}
        )


def _question(row: dict, stereotype: str) -> dict:
    sentence, meant, pronoun = _mentions(row)
    names = [_BY_NAME[found.lower()] for found in _OCCUPATION.findall(sentence)]
    options = list(dict.fromkeys(names))[:2]
    named = _OCCUPATION.search(meant)
    if len(options) != 2 or named is None or _BY_NAME[named[0].lower()] not in options:
        raise ValueError(
            f"WinoBias: {sentence!r} doesn't name two occupations of which one is {meant!r}"
        )
    return {
        "sentence": sentence,
        "pronoun": pronoun,
        "options": options,
        "label": options.index(_BY_NAME[named[0].lower()]),
        "stereotype": stereotype,
    }


def _mentions(row: dict) -> tuple[str, str, str]:
    """Returns the sentence, the occupation that is meant, and its first pronoun."""
    if "sentence" in row:
        return row["sentence"], row["mentions"][0], row["mentions"][1]
    tokens = row["tokens"]
    ends = [int(end) for end in row["coreference_clusters"]]
    spans = [tokens[first : last + 1] for first, last in zip(ends[::2], ends[1::2], strict=True)]
    sentence = re.sub(r" (?=[.,;:!?']|n't\b)", "", " ".join(tokens))
    return sentence, " ".join(spans[0]), " ".join(spans[1])


def winobias_results(doc, results):
    """Returns whether the occupation that is meant is the likelier one, with its stereotype."""
    right = float((results[0][0] < results[1][0]) == doc["label"])
    pair = (right, doc["stereotype"])
    return {"acc": right, "acc_pro": pair, "acc_anti": pair}


def _share_right(items, stereotype: str) -> float:
    right = [value for value, kind in items if kind == stereotype]
    return sum(right) / len(right) if right else float("nan")


def share_right_pro(items) -> float:
    """Returns the share of pro-stereotypical sentences that are right; NaN where there are none."""
    return _share_right(items, "pro")


def share_right_anti(items) -> float:
    """Returns the share of anti-stereotypical sentences that are right; NaN where there are none."""
    return _share_right(items, "anti")
