"""HumanEval and MBPP: the generated program runs in `griffin_jax.evaluation.sandbox`.

The harness's tasks need the metric `code_eval` from the Hub, which runs programs in this process's
fork. These tasks are marked as unsafe: the harness runs them only under `confirm_run_unsafe_code`,
which it checks before the first request, so by the time a filter of ours runs, permission was given.
"""

from dataclasses import asdict

from griffin_jax.evaluation import sandbox

MBPP_EXAMPLES = (2, 3, 4)  # task ids, of the "prompt" split (arXiv:2108.07732, appendix A)


def humaneval_program(doc, completion: str) -> str:
    """Returns the program that tests a completion of HumanEval's prompt."""
    return f"{doc['prompt']}{completion}\n{doc['test']}\ncheck({doc['entry_point']})\n"


def mbpp_program(doc, completion: str) -> str:
    """Returns the program that tests a solution of MBPP."""
    return "\n".join([completion, doc["test_setup_code"], *doc["test_list"], ""])


def _run(program_of, responses, docs) -> list[list[dict]]:
    programs = [
        program_of(doc, completion)
        for completions, doc in zip(responses, docs, strict=True)
        for completion in completions
    ]
    outcomes = iter(sandbox.run_all(programs, allow_code_execution=True))
    return [[asdict(next(outcomes)) for _ in completions] for completions in responses]


def run_humaneval(responses, docs):
    """Returns the outcome of each completion as a dict, in the shape of `responses`."""
    return _run(humaneval_program, list(responses), docs)


def run_mbpp(responses, docs):
    """Returns the outcome of each solution as a dict, in the shape of `responses`."""
    return _run(mbpp_program, list(responses), docs)


def _share_passed(results) -> float:
    return sum(outcome["passed"] for outcome in results[0]) / len(results[0])


def humaneval_results(doc, results):
    """Returns the share of completions that pass."""
    return {"pass@1": _share_passed(results)}


def mbpp_results(doc, results):
    """Returns the share of solutions that pass."""
    return {"pass_at_1": _share_passed(results)}


def mbpp_examples(dataset):
    """Returns the three examples, in order."""
    found = {number: row for row, number in enumerate(dataset["task_id"])}
    return dataset.select([found[number] for number in MBPP_EXAMPLES if number in found])


def mbpp_target(doc) -> str:
    """Returns the tests of a problem, a line each."""
    return "\n".join(doc["test_list"])


def mbpp_example_target(doc) -> str:
    """Returns the solution that an example shows, with the mark that ends it."""
    return f"{doc['code']}\n[DONE]"
