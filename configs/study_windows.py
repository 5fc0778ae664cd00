"""Windows of local attention and lengths of rows, figure 9 of the Griffin paper.

    python -m experiments.study --config=configs/study_windows.py --minutes=9 \
        --config.knobs.train=train.jsonl.xz --config.knobs.heldout=heldout.jsonl.xz

Hardware: one GPU, half a minute a run; call it again until all are done. Memory: 30 GB.
Expected, by the paper: Griffin with a window of 1,024 beats global attention, and the gap shrinks with
the length. With :tiny behind the file's name it takes seconds, and shows nothing.
"""

from ml_collections import ConfigDict

from configs.studies_base import SOURCE, TEXT, A, R, check_size, shrink, text

GRIFFIN = {"block_pattern": (R, R, A)}


def get_config(size: str = "") -> ConfigDict:
    check_size(size)
    config = text("windows", "Windows of local attention (figure 9)")
    config.paper = (
        "Griffin of 400 million parameters with windows from 64 to 2,048 on rows of 2,048, 4,096 and "
        "8,192 tokens, beside an MQA Transformer of global attention. A window of 1,024 beats global "
        "attention at every length, and the gap shrinks with the length."
    )
    # What is run otherwise, for captions.
    config.shorter = "models of 9 million parameters on 4.9 million tokens of old books, in rows of 1,024 and 4,096."
    # What each model has otherwise.
    config.models = {
        f"Griffin, window {window:,}": GRIFFIN | {"attention_window": window}
        for window in (64, 256, 1024)
    } | {"Transformer": {"block_pattern": (A,), "attention_window": None, "rope_fraction": 1.0}}
    config.base = TEXT
    config.variants = {
        "rows of 1,024": {"knobs": {"length": 1024}, "run": {"batch_size": 16}},
        "rows of 4,096": {"knobs": {"length": 4096}, "run": {"batch_size": 4}},
    }
    config.steps = 300
    widest = "Griffin, window 1,024"
    # What is put to the test; see griffin_jax.studies.claims.
    config.claims = (
        {
            "says": f"{widest} beats global attention.",
            "if": tuple(
                (("loss", widest, x), "<", 1.0, ("loss", "Transformer", x)) for x in config.variants
            ),
        },
        {
            "says": "The gap shrinks with the length of rows.",
            "if": (
                (
                    ("loss over", "Transformer", "rows of 4,096", widest),
                    "<",
                    1.0,
                    ("loss over", "Transformer", "rows of 1,024", widest),
                ),
            ),
        },
    )
    if size == "tiny":
        shrink(config, SOURCE)
    return config
