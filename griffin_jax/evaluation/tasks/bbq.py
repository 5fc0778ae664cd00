"""BBQ as a choice among its own three answers.

The harness's task scores ten more ways of saying "unknown", which an undecided model then prefers.
"""

import functools

from lm_eval.api.samplers import ContextSampler


def ambiguous(dataset):
    """Returns the rows whose context leaves the answer open."""
    return dataset.filter(lambda doc: doc["context_condition"] == "ambig")


def disambiguated(dataset):
    """Returns the rows whose context gives the answer."""
    return dataset.filter(lambda doc: doc["context_condition"] == "disambig")


def everything(dataset):
    """Returns both conditions: examples of one alone would give the answer away."""
    return dataset


def _template(doc) -> tuple[str, str]:
    return doc["category"], doc["question_index"]


class OtherTemplates(ContextSampler):
    """Random examples of templates other than the question's and one another's.

    Rows of one template repeat one story in both conditions, and so tell its answer.
    """

    @functools.cached_property
    def _templates(self) -> set[tuple[str, str]]:
        return {_template(doc) for doc in self.df}

    def sample(self, n, eval_doc=None, df=None, **kwargs):
        """Draws n examples; raises ValueError where there are fewer templates."""
        used = {_template(eval_doc)} if eval_doc else set()
        if len(self._templates - used) < n:
            raise ValueError(f"BBQ: too few templates to draw {n} examples from")
        examples = []
        while len(examples) < n:
            doc = self.rnd.choice(self.df)
            if _template(doc) not in used:
                examples.append(doc)
                used.add(_template(doc))
        return examples
