"""The local files that stand for data sets of the Hub, and the fields that the tasks read.

Layout of a data folder: `NAME/[CONFIG/]SPLIT.jsonl`, UTF-8, one object a line, with the fields of
the data set that the harness's task of that name loads from the Hub. A file may be packed, as
SPLIT.jsonl.gz, or be called SPLIT.ndjson.
"""

import fnmatch
from dataclasses import dataclass, field
from typing import Any

# A field's type: a Python type, [type] for a list, {name: type} for an object.
Fields = dict[str, Any]

SPLITS = ("train", "validation", "test", "dev", "prompt")


@dataclass(frozen=True)
class Source:
    """A data set of the Hub in a data folder.

    Attributes:
      folder: The path below the data folder; {name} is the configuration.
      evaluated: The split that holds the questions, which must be there.
      fields: The fields of a row, with their types.
      pool: The split that examples are drawn from.
      only: Values by field; rows with others are left out.
      optional: True if a group of tasks does without it.
    """

    folder: str
    evaluated: str
    fields: Fields
    pool: str = ""
    only: dict[str, str] = field(default_factory=dict)
    optional: bool = False


_CHOICES = {"text": [str], "label": [str]}
_ARC = {"question": str, "choices": _CHOICES, "answerKey": str}
_AGIEVAL = {"query": str, "choices": [str], "gold": [int]}
_WINOGENDER = {
    **dict.fromkeys(("sentence", "pronoun", "occupation", "participant", "gender"), str),
    "label": int,
}
_WINOBIAS = {"sentence": str, "mentions": [str], "stereotype": str}
_BBQ = {
    **dict.fromkeys(("context", "question", "ans0", "ans1", "ans2"), str),
    **dict.fromkeys(("category", "question_index", "context_condition", "question_polarity"), str),
    "answer_info": {"ans0": [str], "ans1": [str], "ans2": [str]},
    "additional_metadata": {"stereotyped_groups": [str]},
    "label": int,
}
_MBPP = {
    **dict.fromkeys(("text", "code", "test_setup_code"), str),
    "task_id": int,
    "test_list": [str],
}

# "PATH" or "PATH:CONFIGURATION" of the Hub, with * for anything -> its files.
SOURCES = {
    "cais/mmlu:*": Source(
        "mmlu/{name}", "test", {"question": str, "choices": [str], "answer": int}, pool="dev"
    ),
    "Rowan/hellaswag": Source(
        "hellaswag",
        "validation",
        {
            **dict.fromkeys(("activity_label", "ctx_a", "ctx_b", "label"), str),
            "endings": [str],
        },
        pool="train",
    ),
    "baber/piqa": Source(
        "piqa", "validation", {"goal": str, "sol1": str, "sol2": str, "label": int}, pool="train"
    ),
    "lighteval/siqa": Source(
        "social_iqa",
        "validation",
        dict.fromkeys(("context", "question", "answerA", "answerB", "answerC", "label"), str),
        pool="train",
    ),
    "aps/super_glue:boolq": Source(
        "boolq", "validation", {"question": str, "passage": str, "label": int}, pool="train"
    ),
    "allenai/winogrande:*": Source(
        "winogrande",
        "validation",
        dict.fromkeys(("sentence", "option1", "option2", "answer"), str),
        pool="train",
    ),
    "tau/commonsense_qa": Source("commonsense_qa", "validation", _ARC, pool="train"),
    "allenai/openbookqa:main": Source(
        "openbookqa",
        "test",
        {"question_stem": str, "choices": _CHOICES, "answerKey": str},
        pool="train",
    ),
    "allenai/ai2_arc:ARC-Easy": Source("arc_easy", "test", _ARC, pool="train"),
    "allenai/ai2_arc:ARC-Challenge": Source("arc_challenge", "test", _ARC, pool="train"),
    "mandarjoshi/trivia_qa:rc.nocontext": Source(
        "triviaqa",
        "validation",
        {"question": str, "answer": {"value": str, "aliases": [str]}},
        pool="train",
    ),
    "google-research-datasets/nq_open": Source(
        "nq_open", "validation", {"question": str, "answer": [str]}, pool="train"
    ),
    "openai/openai_humaneval": Source(
        "humaneval",
        "test",
        dict.fromkeys(("task_id", "prompt", "canonical_solution", "test", "entry_point"), str),
    ),
    "google-research-datasets/mbpp:full": Source("mbpp", "test", _MBPP, pool="prompt"),
    "openai/gsm8k:main": Source("gsm8k", "test", {"question": str, "answer": str}, pool="train"),
    "EleutherAI/hendrycks_math:*": Source(
        "math/{name}",
        "test",
        dict.fromkeys(("problem", "level", "type", "solution"), str),
        pool="train",
    ),
    # Its license forbids commercial use, so a collection may lack it.
    "hails/agieval-logiqa-en": Source("agieval/logiqa-en", "test", _AGIEVAL, optional=True),
    **{
        f"hails/agieval-{name}": Source(f"agieval/{name}", "test", _AGIEVAL)
        for name in (
            *("aqua-rat", "gaokao-english", "lsat-ar", "lsat-lr", "lsat-rc", "sat-en"),
            *("sat-en-without-passage", "sat-math"),
        )
    },
    "hails/agieval-math": Source("agieval/math", "test", {"query": str, "answer": str}),
    "SaylorTwift/bbh:*": Source("bbh/{name}", "test", {"input": str, "target": str}),
    "allenai/real-toxicity-prompts": Source(
        "realtoxicityprompts", "train", {"prompt": {"text": str}}
    ),
    "AlexaAI/bold": Source(
        "bold",
        "train",
        {**dict.fromkeys(("domain", "name", "category"), str), "prompts": [str]},
    ),
    "jannalu/crows_pairs_multilingual:english": Source(
        "crows_pairs", "test", dict.fromkeys(("sent_more", "sent_less", "bias_type"), str)
    ),
    "oskarvanderwal/bbq:All": Source("bbq", "test", _BBQ, pool="test"),
    "oskarvanderwal/winogender:*": Source("winogender/{name}", "test", _WINOGENDER),
    "truthfulqa/truthful_qa:multiple_choice": Source(
        "truthfulqa/multiple_choice",
        "validation",
        {
            "question": str,
            "mc1_targets": {"choices": [str], "labels": [int]},
            "mc2_targets": {"choices": [str], "labels": [int]},
        },
    ),
    "truthfulqa/truthful_qa:generation": Source(
        "truthfulqa/generation",
        "validation",
        {
            "question": str,
            "best_answer": str,
            "correct_answers": [str],
            "incorrect_answers": [str],
        },
    ),
    "skg/toxigen-data:annotated": Source(
        "toxigen",
        "test",
        {"text": str, "toxicity_ai": float, "toxicity_human": float},
        pool="train",
    ),
    **{
        f"uclanlp/wino_bias:type{kind}_{stereotype}": Source(
            f"winobias/type{kind}", "test", _WINOBIAS, only={"stereotype": stereotype}
        )
        for kind in (1, 2)
        for stereotype in ("pro", "anti")
    },
}


def source_of(path: str, name: str | None) -> Source | None:
    """Returns the files that stand for a data set of the Hub; None if no such set is known."""
    for key in (path, f"{path}:{name}"):
        for pattern, source in SOURCES.items():
            if fnmatch.fnmatchcase(key, pattern):
                return source
    return None


def first_problem(value: Any, kind: Any, where: str = "") -> str | None:
    """Returns the first field of a row that is missing or of another type, as a sentence; None if
    fine.
    """
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            return f"field {where!r} is {_kind(value)}, not an object" if where else "no object"
        for name, inner in kind.items():
            path = f"{where}.{name}" if where else name
            if name not in value:
                return f"field {path!r} is missing"
            if problem := first_problem(value[name], inner, path):
                return problem
        return None
    if isinstance(kind, list):
        if not isinstance(value, list):
            return f"field {where!r} is {_kind(value)}, not a list"
        for number, inner in enumerate(value):
            if problem := first_problem(inner, kind[0], f"{where}[{number}]"):
                return problem
        return None
    allowed = (int, float) if kind is float else (kind,)
    if not isinstance(value, allowed):
        return f"field {where!r} is {_kind(value)}, not {_NAMES[kind]}"
    return None


_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return {list: "a list", dict: "an object"}.get(type(value)) or _NAMES[type(value)]
