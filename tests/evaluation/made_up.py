"""A data folder of made-up questions, a few for each of our tasks."""

import json
from pathlib import Path

from griffin_jax.evaluation.tasks import TASKS_PATH

_CHOICES = {"label": ["A", "B", "C", "D"], "text": ["a shoe", "a spoon", "a lamp", "the sea"]}


def _adding(number: int) -> dict:
    return {
        "task_id": number,
        "text": f"Write a function to add {number}.",
        "code": f"def add_{number}(x):\r\n    return x + {number}",
        "test_list": [f"assert add_{number}({x}) == {x + number}" for x in range(3)],
        "test_setup_code": "",
    }


def _bbq(number: int, category: str, condition: str, label: int) -> dict:
    return {
        "category": category,
        "question_index": str(number),
        "context_condition": condition,
        "question_polarity": "neg",
        "context": f"Story {number} of {category}, {condition}.",
        "question": "Who was it?",
        "ans0": "The first",
        "ans1": "The second",
        "ans2": "Not known",
        "answer_info": {"ans0": ["a", "old"], "ans1": ["b", "young"], "ans2": ["c", "unknown"]},
        "additional_metadata": {"stereotyped_groups": ["old"]},
        "label": label,
    }


def _winobias(kind: str) -> list[dict]:
    return [
        {
            "sentence": f"The {one} thanked the {other} because {pronoun} had helped.",
            "mentions": [f"the {other}", pronoun],
            "stereotype": stereotype,
        }
        for one, other, pronoun, stereotype in (
            ("nurse", "construction worker", "he", "pro"),
            ("CEO", "cashier", "she", "pro"),
            ("nurse", "construction worker", "she", "anti"),
            ("CEO", "cashier", "he", "anti"),
        )
    ]


def _agieval(name: str, rows: int) -> list[dict]:
    return [
        {
            "query": f"Q: {name} {number}? Answer Choices: (A)x (B)y (C)z (D)w\n"
            "A: Among A through D, the answer is",
            "choices": ["(A)x", "(B)y", "(C)z", "(D)w"],
            "gold": [number % 4],
        }
        for number in range(rows)
    ]


ROWS = {
    "social_iqa/validation": [
        {
            "context": "Ann lent Bob a book.",
            "question": "What will Bob do?",
            "answerA": "read it with great care and bring it back",
            "answerB": "eat",
            "answerC": "swim",
            "label": label,
        }
        for label in ("1", "2")
    ],
    "boolq/validation": [
        {"passage": "Salt is a mineral.", "question": "is salt a mineral", "label": 1},
        {"passage": "Salt is a mineral.", "question": "is salt a plant", "label": 0},
    ],
    "openbookqa/test": [
        {"question_stem": "What lights a room?", "choices": _CHOICES, "answerKey": "C"},
        {"question_stem": "Where do whales live?", "choices": _CHOICES, "answerKey": " D"},
    ],
    "triviaqa/validation": [
        {
            "question": "Who wrote a book about a whale?",
            "answer": {"value": "Herman Melville", "aliases": ["Melville, Herman", "H. Melville"]},
        },
        {
            "question": "Which large show moves from town to town?",
            "answer": {"value": "The Circus", "aliases": ["Circus"]},
        },
    ],
    "triviaqa/train": [
        {"question": f"Example {i}?", "answer": {"value": f"answer {i}", "aliases": ["other"]}}
        for i in range(5)
    ],
    "nq_open/validation": [
        {"question": "when did the second game begin", "answer": ["2 May", "2 May 1999"]},
        {"question": "who paid the piper", "answer": ["The Town"]},
    ],
    "nq_open/train": [{"question": f"example {i}", "answer": [f"answer {i}"]} for i in range(5)],
    "humaneval/test": [
        {
            "task_id": f"Made/{number}",
            "prompt": f'def times_{number}(x):\n    """{number} times x."""\n',
            "canonical_solution": f"    return {number} * x\n",
            "test": f"\ndef check(candidate):\n    assert candidate(3) == {3 * number}\n",
            "entry_point": f"times_{number}",
        }
        for number in (2, 3)
    ],
    "mbpp/test": [_adding(11), _adding(12)],
    "mbpp/prompt": [_adding(number) for number in (1, 2, 3, 4, 5)],
    "gsm8k/test": [
        {"question": "Two boxes of 700 nails: how many?", "answer": "2*700\n#### 1,400"},
        {"question": "What is left of 3 after 5 go?", "answer": "3-5\n#### -2"},
    ],
    "realtoxicityprompts/train": [{"prompt": {"text": text}} for text in ("The rain", "A dog")],
    "bold/train": [
        {"domain": "d", "category": "c", "name": "n", "prompts": ["The first ", "The second"]},
        {"domain": "d", "category": "c", "name": "m", "prompts": ["The third"]},
    ],
    "toxigen/test": [
        {"text": "people are people  ", "toxicity_ai": 1.0, "toxicity_human": 1},
        {"text": "cats are cats", "toxicity_ai": 1.0, "toxicity_human": 1.5},
    ],
    "bbq/test": [
        _bbq(number, category, condition, label)
        for number, category in ((1, "Age"), (2, "Age"), (1, "Religion"), (2, "Religion"))
        for condition, label in (("ambig", 2), ("disambig", number % 2))
    ],
    "winogender/all/test": [
        {
            "sentence": f"The cook told {participant} that she was late.",
            "pronoun": "she",
            "occupation": "cook",
            "participant": participant.removeprefix("the "),
            "gender": "female",
            "label": label,
        }
        for participant, label in (("the guest", 1), ("someone", 1), ("the guest", 0))
    ],
    "winobias/type1/test": _winobias("type1"),
    "winobias/type2/test": _winobias("type2"),
    # Subsets of different sizes, so that means over rows and over subsets differ.
    **{
        f"agieval/{name}/test": _agieval(name, rows)
        for name, rows in (
            *(("aqua-rat", 9), ("lsat-ar", 6), ("lsat-lr", 6), ("lsat-rc", 4), ("sat-en", 4)),
            *(("sat-en-without-passage", 6), ("sat-math", 6)),
        )
    },
    **{
        f"bbh/{path.stem}/test": [
            {"input": f"{path.stem} {number}", "target": "(B)"}
            for number in range(3 if path.stem == "word_sorting" else 1)
        ]
        for path in sorted((TASKS_PATH / "bbh_subsets").glob("[a-z]*.yaml"))
    },
}


def write(folder: Path, rows: dict[str, list[dict]] = ROWS) -> Path:
    for name, lines in rows.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder
