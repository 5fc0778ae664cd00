"""The model card's 18 quality rows, by lm-evaluation-harness.

    python -m experiments.evaluate --config=configs/eval_quality.py --config.model=FOLDER
    python -m experiments.tables --results=runs/evaluation

Each row names its tasks, the first of which is compared with the card: the harness's own, and beside
it ours (`griffin_...`) where the harness's own is known to measure something else. The published
figures come from a harness that is not public, so none can be promised to come out again; `differs`
says what is known.

Hardware: the model's. Memory: the model, and 26 MB of state for each text of a batch of the 9B.
Expected, for the 9B: within 2 points of the card on MMLU, HellaSwag, WinoGrande, ARC-c, HumanEval
and MBPP; below it on TriviaQA and Natural Questions, whose prompts and stop strings cost points.
griffin-tiny, the default, guesses. Data sets come from the Hub; `--config.data_dir=DIR` reads JSON
lines instead, DIR/NAME/[SUBSET/]SPLIT.jsonl with the Hub's fields. `--config.limit=10` runs 10
questions of each task.
"""

from ml_collections import ConfigDict, config_dict

from griffin_jax.evaluation.suites import GENERATED_CODE, UNGUARDED_CODE, Measure, Row


def row(benchmark: str, card: float, protocol: str, *measures: Measure) -> Row:
    """A row of the card, with its figure and what the card says of how that was measured."""
    return Row(benchmark, {"recurrentgemma-9b": card}, protocol, measures)


NORMALIZED = "the card does not say whether log-probabilities are divided by length; both are shown"
PRIOR = (
    "each choice's probability over its probability after 'Answer:' alone, as LLaMA's authors do"
)

ROWS = (
    row(
        "MMLU",
        60.5,
        "5-shot, top-1",
        Measure("mmlu", "acc,none", 5, "none known; mean over questions, not over subjects"),
    ),
    row(
        "HellaSwag",
        80.4,
        "0-shot",
        Measure("hellaswag", "acc_norm,none", 0, "log-probabilities per character of the ending"),
    ),
    row(
        "PIQA",
        81.3,
        "0-shot",
        Measure("piqa", "acc_norm,none", 0, NORMALIZED),
        Measure("piqa", "acc,none", 0, NORMALIZED),
    ),
    row(
        "SocialIQA",
        52.3,
        "0-shot",
        Measure("social_iqa", "acc,none", 0, NORMALIZED),
        Measure("griffin_social_iqa", "acc_norm,none", 0, "log-probabilities per character"),
    ),
    row(
        "BoolQ",
        80.3,
        "0-shot",
        Measure("boolq", "acc,none", 0, "the card does not say how choices are weighed"),
        Measure("griffin_boolq", "acc_prior,none", 0, PRIOR),
    ),
    row(
        "WinoGrande",
        73.6,
        "partial score",
        Measure("winogrande", "acc,none", 0, "none known: the task is partial scoring"),
    ),
    row(
        "CommonsenseQA",
        73.2,
        "7-shot",
        Measure("commonsense_qa", "acc,none", 7, "other examples: drawn with seed 1234"),
    ),
    row(
        "OpenBookQA",
        51.8,
        "",
        Measure("openbookqa", "acc_norm,none", 0, NORMALIZED),
        Measure("griffin_openbookqa", "acc_prior,none", 0, PRIOR),
    ),
    row(
        "ARC-e",
        78.8,
        "",
        Measure("arc_easy", "acc,none", 0, NORMALIZED),
        Measure("arc_easy", "acc_norm,none", 0, NORMALIZED),
    ),
    row(
        "ARC-c",
        52.0,
        "",
        Measure("arc_challenge", "acc_norm,none", 0, "0-shot, not the 25-shot of other tables"),
        Measure("arc_challenge", "acc,none", 0, NORMALIZED),
    ),
    row(
        "TriviaQA",
        70.5,
        "5-shot",
        Measure(
            "triviaqa",
            "exact_match,remove_whitespace",
            5,
            "questions end in '??'; answers end at a full stop or comma, also within a name",
        ),
        Measure("griffin_triviaqa", "exact_match,none", 5, "one '?'; answers end with the line"),
    ),
    row(
        "Natural Questions",
        21.7,
        "5-shot",
        Measure(
            "nq_open",
            "exact_match,remove_whitespace",
            5,
            "answers end at a full stop or comma, also within a name",
        ),
        Measure("griffin_nq_open", "exact_match,none", 5, "answers end with the line"),
    ),
    row(
        "HumanEval",
        31.1,
        "pass@1",
        Measure(
            "griffin_humaneval",
            "pass@1,create_test",
            0,
            "none known: greedy; programs run in a sandbox of ours",
            needs=GENERATED_CODE,
        ),
        Measure(
            "humaneval",
            "pass@1,create_test",
            0,
            "the harness's own: metric from the Hub, programs unguarded",
            needs=UNGUARDED_CODE,
        ),
    ),
    row(
        "MBPP",
        42.0,
        "3-shot",
        Measure(
            "griffin_mbpp",
            "pass_at_1,none",
            None,
            "none known: all 500 of the test split, not the hand-verified ones",
            needs=GENERATED_CODE,
        ),
        Measure(
            "mbpp",
            "pass_at_1,none",
            None,
            "the harness's own: metric from the Hub, programs unguarded",
            needs=UNGUARDED_CODE,
        ),
    ),
    row(
        "GSM8K",
        42.6,
        "maj@1",
        Measure(
            "griffin_gsm8k",
            "exact_match,none",
            None,
            "8-shot, by the protocol that the authors published for the 2B (19.3 there, card 13.4)",
        ),
        Measure("gsm8k", "exact_match,strict-match", None, "5-shot, examples drawn from the data"),
        Measure("gsm8k_cot", "exact_match,flexible-extract", None, "8-shot, other examples"),
    ),
    row(
        "MATH",
        23.8,
        "4-shot",
        Measure("minerva_math", "math_verify,none", None, "Minerva's examples; answers compared"),
        Measure("minerva_math", "exact_match,none", None, "Minerva's examples and its comparison"),
    ),
    row(
        "AGIEval",
        39.3,
        "",
        Measure(
            "griffin_agieval",
            "acc,none",
            None,
            "5-shot, 3-shot with passages, English multiple choice; other examples than the authors'",
        ),
        Measure("agieval_en", "acc,none", 0, "0-shot, with MATH cloze and gaokao-english"),
    ),
    row(
        "BIG-Bench",
        55.2,
        "",
        Measure(
            "griffin_bbh",
            "exact_match,get-answer",
            None,
            "BIG-Bench Hard, 3-shot with reasoning; texts end with the answer",
        ),
        Measure(
            "bbh",
            "exact_match,get-answer",
            None,
            "texts end at any 'Q'; an answer without a full stop loses its last character",
        ),
    ),
)


def get_config() -> ConfigDict:
    config = ConfigDict()
    # What the results are called.
    config.suite = "quality"
    # The rows of the card, each with its tasks.
    config.rows = ROWS
    # The row that is the mean of the others, once all are measured, and its figure.
    config.average = row("Average", 56.1, "mean of the rows")
    # "griffin-tiny", a folder of a model, a name on the Hub; or random:recurrentgemma-9b and the
    # like, a shape with random weights, to measure speed with.
    config.model = "griffin-tiny"
    # "nf4" or "fp4" packs linear weights on the way. A folder in 4 bits loads as it is without.
    config.quantization = config_dict.placeholder(str)
    # The dtype of activations; None is what a 4-bit folder says, and otherwise bfloat16 on accelerators and
    # float32 on CPUs.
    config.dtype = config_dict.placeholder(str)
    # Devices along each axis; -1 along one of them takes the rest.
    config.mesh = {"data": 1, "fsdp": 1, "model": 1, "sequence": 1}
    # Names of tasks or benchmarks, separated by commas; empty for all.
    config.tasks = ""
    # Questions of each task, and of each subject of MMLU and the like; None for all.
    config.limit = config_dict.placeholder(int)
    # The same of tasks whose answers are written, which take longest; None is `limit`.
    config.generation_limit = config_dict.placeholder(int)
    # Folder of JSON lines to read instead of the Hub.
    config.data_dir = config_dict.placeholder(str)
    # Prompts are a user's turns, for models that follow instructions.
    config.chat = False
    # Run the programs that the model writes (HumanEval, MBPP), in a sandbox.
    config.run_generated_code = False
    # Who judges written texts: "perspective" (toxicity; needs PERSPECTIVE_API_KEY), "vader"
    # (sentiment), "none" (texts are written down, and not judged) or "module:function".
    config.toxicity_scorer = "perspective"
    # Who judges sentiment, in the same words.
    config.sentiment_scorer = "vader"
    # Run the layers in a loop, which compiles a shape sooner; None is the platform's default.
    config.stack_layers = config_dict.placeholder(bool)
    # Texts that run together.
    config.batch_size = 32
    # Longer prompts lose their beginning, but for BOS; None loses nothing.
    config.max_length = config_dict.placeholder(int)
    # New tokens where a task does not say how many.
    config.max_gen_toks = 1024
    # At most so many, whatever a task says: for trial runs.
    config.gen_toks_cap = config_dict.placeholder(int)
    # Read once what prompts have in common, and fork the state.
    config.fork = True
    # The seed of texts that are drawn. The harness's own seeds are fixed: 0, and 1234 for examples.
    config.seed = 0
    # Write each prompt, answer and judgment beside the results.
    config.log_samples = False
    return config
