"""BBQ as a choice among its own three answers.

The harness's task scores ten more ways of saying "unknown", which an undecided model then prefers.
"""


def ambiguous(dataset):
    return dataset.filter(lambda doc: doc["context_condition"] == "ambig")


def disambiguated(dataset):
    return dataset.filter(lambda doc: doc["context_condition"] == "disambig")


def everything(dataset):
    """The examples come from both conditions: from one alone, they would give the answer away."""
    return dataset
