"""Held-out loss over the size of models, figure 1a of the Griffin paper.

    python -m experiments.study --config=configs/study_scaling.py --minutes=9 \
        --config.knobs.train=train.jsonl.xz --config.knobs.heldout=heldout.jsonl.xz

Hardware: one GPU, up to a minute a run; call it again until all are done. Memory: 30 GB.
Expected, by the paper: power laws for Griffin, Hawk and the Transformer, Griffin's lowest; at so few
tokens the laws flatten. With :tiny behind the file's name it takes seconds, and shows nothing.
"""

from ml_collections import ConfigDict

from configs.studies_base import SOURCE, TEXT, A, R, check_size, shrink, text


def get_config(size: str = "") -> ConfigDict:
    check_size(size)
    config = text("scaling", "Loss over size (figure 1a)")
    config.paper = (
        "Models of 100 million to 14 billion parameters on 300 billion tokens and more; the loss falls "
        "with the training FLOPs as a power law, for Griffin lowest, Hawk and the MQA Transformer alike."
    )
    # What is run otherwise, for captions.
    config.shorter = (
        "2 to 25 million parameters, all on the same 6.6 million tokens of old books, far fewer than "
        "the larger ones could use."
    )
    # What each model has otherwise.
    config.models = {
        "Griffin": {"block_pattern": (R, R, A)},
        "Hawk": {"block_pattern": (R,)},
        "Transformer": {"block_pattern": (A,), "attention_window": None, "rope_fraction": 1.0},
    }
    config.base = TEXT
    # Each size is a model of its own.
    config.variants = {
        f"width {width}": {"base": {"width": width, "mlp_width": 3 * width, "num_layers": layers}}
        for width, layers in ((128, 6), (192, 6), (256, 8), (384, 12))
    }
    config.steps = 400
    # How plots and laws are drawn: over what.
    config.law = "parameters"
    # What is put to the test; see griffin_jax.studies.claims.
    config.claims = (
        {
            "says": "The loss falls as a power law of the size, with an exponent above 0.",
            "if": tuple((("exponent", x), ">", 0.0) for x in config.models),
        },
        {
            "says": "Griffin's loss is the lowest at every size.",
            "if": tuple(
                (("loss", "Griffin", variant), "<=", 1.0, ("loss", other, variant))
                for variant in config.variants
                for other in ("Hawk", "Transformer")
            ),
        },
    )
    if size == "tiny":
        shrink(config, SOURCE)
    return config
