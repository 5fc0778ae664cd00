"""Gates of the recurrence on text, figure 7 and appendix B of the Griffin paper.

    python -m experiments.study --config=configs/study_gates.py --minutes=9 \
        --config.knobs.train=train.jsonl.xz --config.knobs.heldout=heldout.jsonl.xz

Hardware: one GPU, about ten minutes a run; call it again until all are done. Memory: 30 GB.
Expected, by the paper: a complex recurrence (CG-LRU) does not help on language. With :tiny behind the
file's name it learns from this project's source in seconds, which shows nothing.
"""

from ml_collections import ConfigDict

from configs.studies_base import RECURRENCES, SOURCE, TEXT, check_size, shrink, text


def get_config(size: str = "") -> ConfigDict:
    check_size(size)
    config = text("gates", "Gates of the recurrence (figure 7, appendix B)")
    config.paper = (
        "The RG-LRU beside other gates of h = alpha h + beta x on the same tokens. Appendix B says that "
        "a complex-valued recurrence does not improve language models."
    )
    # What is run otherwise, for captions.
    config.shorter = (
        "models of 9 million parameters on 4.9 million tokens of old books, at one rate."
    )
    config.base = TEXT
    # What each model has otherwise.
    config.models = RECURRENCES
    config.steps = 300
    # What is put to the test; see griffin_jax.studies.claims.
    config.claims = (
        {
            "says": "A complex recurrence does not help on language.",
            "if": ((("loss", "CG-LRU"), ">=", 0.998, ("loss", "RG-LRU")),),
        },
        {
            "says": "The RG-LRU is as good as any of the gates.",
            "if": tuple(
                (("loss", "RG-LRU"), "<=", 1.002, ("loss", x)) for x in ("LRU", "GRU", "Mamba")
            ),
        },
    )
    if size == "tiny":
        shrink(config, SOURCE)
    return config
