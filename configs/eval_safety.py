"""The model card's 10 safety rows, by lm-evaluation-harness.

    python -m experiments.evaluate --config=configs/eval_safety.py --config.model=FOLDER
    python -m experiments.tables --results=runs/evaluation

As configs/eval_quality.py, which explains the fields. How most of these rows were measured was never
published: what is known, or guessed, to differ stands with each. Toxicity is judged by Perspective,
which takes an API key, takes no new users and ends with 2026; without a key, choose another judge:
`--config.toxicity_scorer=none` writes the texts down to be judged elsewhere.

Hardware, memory: as there. Expected, for the 9B: within 2 points of the card on TruthfulQA; the
others cannot be promised. BBQ (58,492 questions), RealToxicity (99,442 prompts) and BOLD (23,679)
take a `--config.limit`.
"""

from ml_collections import ConfigDict

from configs import eval_quality
from griffin_jax.evaluation.suites import Measure, Row


def row(benchmark: str, base: float, tuned: float, protocol: str, *measures: Measure) -> Row:
    """A row of the card, with the figures of the base model and of the instruction-tuned one."""
    card = {"recurrentgemma-9b": base, "recurrentgemma-9b-it": tuned}
    return Row(benchmark, card, protocol, measures)


ALL_SENTENCES = (
    "the card names neither sentences nor scoring; all pro- and anti-stereotyped ones here"
)

ROWS = (
    row(
        "RealToxicity",
        10.3,
        8.8,
        "avg",
        Measure(
            "griffin_realtoxicityprompts",
            "toxicity,none",
            0,
            "mean toxicity of what is written, by the judge that the config names",
        ),
    ),
    row(
        "BOLD",
        39.8,
        47.9,
        "",
        Measure(
            "griffin_bold",
            "sentiment,none",
            0,
            "the card names no metric; mean VADER sentiment here, as LLaMA 2's authors report",
        ),
    ),
    row(
        "CrowS-Pairs",
        38.7,
        39.5,
        "top-1",
        Measure(
            "crows_pairs_english",
            "pct_stereotype,none",
            0,
            "share of pairs whose stereotype is likelier; the card looks like 100 minus that",
        ),
    ),
    row(
        "BBQ Ambig",
        95.9,
        67.1,
        "top-1",
        Measure("griffin_bbq_ambig", "acc,none", None, "1-shot over the three choices, as Gemma 1"),
        Measure("bbq", "accuracy_amb,none", 0, "0-shot; ten ways to say 'unknown' count as one"),
    ),
    row(
        "BBQ Disambig",
        78.6,
        78.9,
        "top-1",
        Measure("griffin_bbq_disambig", "acc,none", None, "1-shot over the three choices"),
        Measure("bbq", "accuracy_disamb,none", 0, "0-shot; ten ways to say 'unknown' count as one"),
    ),
    row(
        "Winogender",
        59.0,
        64.0,
        "top-1",
        Measure("winogender_all", "acc,none", 0, "the prompt is the harness's"),
        Measure(
            "griffin_winogender",
            "acc,none",
            0,
            "the same prompt; both people as the sentence names them",
        ),
    ),
    row(
        "TruthfulQA",
        38.6,
        47.7,
        "",
        Measure("truthfulqa_mc2", "acc,none", None, "none known: MC2 behind six examples"),
    ),
    row(
        "Winobias 1_2",
        61.5,
        60.6,
        "",
        Measure("griffin_winobias_1_2", "acc,none", 0, ALL_SENTENCES),
    ),
    row(
        "Winobias 2_2",
        90.2,
        90.3,
        "",
        Measure("griffin_winobias_2_2", "acc,none", 0, ALL_SENTENCES),
    ),
    row(
        "Toxigen",
        58.8,
        64.5,
        "",
        Measure(
            "griffin_toxigen",
            "toxicity,none",
            0,
            "mean toxicity of what is written, by the judge that the config names",
        ),
        Measure(
            "toxigen",
            "acc,none",
            0,
            "another thing: whether the model tells toxic from harmless text",
            comparable=False,
        ),
    ),
)


def get_config() -> ConfigDict:
    config = eval_quality.get_config()
    config.suite = "safety"
    config.rows = ROWS
    config.average = None
    return config
