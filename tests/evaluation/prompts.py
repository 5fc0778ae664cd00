"""What the harness sends to a model for each row of the card, as digests.

    GRIFFIN_BENCHMARKS=DIR python -m tests.evaluation.prompts

records the digests of this harness over the samples in DIR (by default ../shared/benchmarks beside
the checkout) anew: for a new version of the harness, after reading what it changed.
"""

import hashlib
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest
from lm_eval.api.group import Group

from griffin_jax.evaluation.local_data import local_tasks

RECORDED = Path(__file__).with_name("recorded_prompts.json")
BENCHMARKS = Path(
    os.environ.get("GRIFFIN_BENCHMARKS", Path(__file__).parents[2].parent / "shared" / "benchmarks")
)
needs_samples = pytest.mark.skipif(
    not BENCHMARKS.is_dir(),
    reason=f"no benchmark samples in {BENCHMARKS} (GRIFFIN_BENCHMARKS names another folder)",
)
QUESTIONS = 2  # of each task, in the digest

# Rows of the card -> tasks, each with the number of examples where the task doesn't say.
ROWS = {
    "MMLU": {"mmlu": 5},
    "HellaSwag": {"hellaswag": 0},
    "PIQA": {"piqa": 0},
    "SocialIQA": {"social_iqa": 0, "griffin_social_iqa": 0},
    "BoolQ": {"boolq": 0, "griffin_boolq": 0},
    "WinoGrande": {"winogrande": 0},
    "CommonsenseQA": {"commonsense_qa": 7},
    "OpenBookQA": {"openbookqa": 0, "griffin_openbookqa": 0},
    "ARC-e": {"arc_easy": 0},
    "ARC-c": {"arc_challenge": 0},
    "TriviaQA": {"triviaqa": 5, "griffin_triviaqa": None},
    "Natural Questions": {"nq_open": 5, "griffin_nq_open": None},
    "HumanEval": {"griffin_humaneval": None},
    "MBPP": {"griffin_mbpp": None},
    "GSM8K": {"gsm8k": None, "gsm8k_cot": None, "griffin_gsm8k": None},
    "AGIEval": {"griffin_agieval": None},
    "BIG-Bench": {"bbh": None, "griffin_bbh": None},
    "RealToxicity": {"griffin_realtoxicityprompts": None},
    "BOLD": {"griffin_bold": None},
    "CrowS-Pairs": {"crows_pairs_english": 0},
    "BBQ Ambig": {"bbq": 0, "griffin_bbq_ambig": None},
    "BBQ Disambig": {"bbq": 0, "griffin_bbq_disambig": None},
    "Winogender": {"winogender_all": 0, "griffin_winogender": None},
    "TruthfulQA": {"truthfulqa_mc2": None},
    "Winobias 1_2": {"griffin_winobias_1_2": None},
    "Winobias 2_2": {"griffin_winobias_2_2": None},
    "Toxigen": {"toxigen": 0, "griffin_toxigen": None},
}
SHOTS = {name: shots for tasks in ROWS.values() for name, shots in tasks.items()}


def load(folder: Path) -> dict:
    """The tasks over the samples; generations of the toxicity tasks would go to `folder`."""
    options = {"toxicity_scorer": "none", "generations_dir": str(folder)}
    return local_tasks(SHOTS, BENCHMARKS, num_fewshot=SHOTS, metadata=options)


def digest(name: str, task, questions: int | None = QUESTIONS) -> dict:
    """Number and SHA-256 of the requests for the first `questions` questions of each subset."""
    leaves = task.get_all_tasks() if isinstance(task, Group) else [task]
    requests = []
    for leaf in sorted(leaves, key=lambda leaf: leaf.task_name):
        if SHOTS[name] is not None:
            leaf.set_config("num_fewshot", SHOTS[name])
        leaf.set_fewshot_seed(1234)
        leaf.build_all_requests(limit=questions)
        requests += [[leaf.task_name, *instance.args] for instance in leaf.instances]
    text = json.dumps(requests, ensure_ascii=False, sort_keys=True)
    return {"requests": len(requests), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def main():
    with tempfile.TemporaryDirectory() as folder:
        tasks = load(Path(folder))
    found = {
        name: digest(name, task)
        | {"requests of all questions": digest(name, task, None)["requests"]}
        for name, task in tasks.items()
    }
    record = {"lm_eval": version("lm_eval"), "questions": QUESTIONS, "tasks": found}
    RECORDED.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
