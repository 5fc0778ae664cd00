"""Multiple choice weighed by how likely each answer is without its question.

LLaMA's protocol for OpenBookQA and BoolQ, after GPT-3's: choose the answer that maximizes
P(answer | question) / P(answer | "Answer:"). (arXiv:2302.13971, section 3; arXiv:2005.14165,
section 2.4.) The harness's own `acc_mutual_info` takes the empty context instead of "Answer:".
"""

import dataclasses
from typing import Any

from lm_eval.api.registry import register_metric

from griffin_jax.evaluation.tasks.task import GriffinTask

PRIOR_CONTEXT = "Answer:"


@register_metric(
    metric="acc_prior",
    higher_is_better=True,
    output_type="multiple_choice",
    aggregation="mean",
)
def acc_prior(items):
    """Returns what the task has computed; it is registered so that the task's YAML can name it."""
    return items


class ChoicesWithPrior(GriffinTask):
    """Adds to each answer's request a second one, the answer after `PRIOR_CONTEXT` alone."""

    def construct_requests(self, doc, ctx, **kwargs):
        requests: Any = super().construct_requests(doc, ctx, **kwargs)
        return requests + [
            dataclasses.replace(
                request,
                arguments=(PRIOR_CONTEXT, request.arguments[1]),
                idx=len(requests) + request.idx,
                resps=[],
                filtered_resps={},
            )
            for request in requests
        ]

    def process_results(self, doc, results):
        half = len(results) // 2
        weighed = [
            with_question[0] - alone[0]
            for with_question, alone in zip(results[:half], results[half:], strict=True)
        ]
        best = max(range(half), key=weighed.__getitem__)
        found = super().process_results(doc, results[:half])
        return found | {"acc_prior": float(best == self.doc_to_target(doc))}
