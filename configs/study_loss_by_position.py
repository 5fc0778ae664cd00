"""Loss by position, figures 5 and 10 of the Griffin paper: training on longer rows, and state passing.

    python -m experiments.study --config=configs/study_loss_by_position.py --minutes=9 \
        --config.knobs.train=train.jsonl.xz --config.knobs.heldout=heldout.jsonl.xz

Hardware: one GPU, a minute a run; call it again until all are done. Memory: 30 GB.
:compared behind the file's name takes the models of docs/griffin-tiny and trains none.
Expected, by the paper: training on longer rows helps far out and loses little near. With :tiny behind
the file's name it learns from this project's source in seconds, which shows nothing.
"""

from ml_collections import ConfigDict

from configs.studies_base import SOURCE, TEXT, A, R, check_size, shrink, text


def get_config(size: str = "") -> ConfigDict:
    check_size(size, "compared")
    config = text("loss_by_position", "Loss by position (figures 5 and 10)")
    config.paper = (
        "Models trained on rows of 2,048 and of 8,192 tokens, the same number of tokens, are read far "
        "beyond. Griffin and Hawk go on to fall far beyond the trained length; longer rows in training "
        "help far out and cost a little near; the Transformer fails beyond its trained length."
    )
    # What is run otherwise, for captions.
    config.shorter = (
        "models of 9 million parameters with a window of 512, trained on 12 million tokens of old books "
        "in rows of 1,024 and 4,096, and read to 65,536. State passing is this project's: the last 500 "
        "steps begin from the state that 1,024 tokens before have left."
    )
    # What each model has otherwise.
    config.models = {
        "Griffin": {"block_pattern": (R, R, A)},
        "Hawk": {"block_pattern": (R,)},
        "Transformer": {"block_pattern": (A,), "attention_window": None, "rope_fraction": 1.0},
    }
    config.base = TEXT
    config.seeds = (0, 1, 2)
    # Rows of a length, as many as make the same number of tokens.
    config.variants = {
        "rows of 1,024": {"knobs": {"length": 1024}, "run": {"batch_size": 16}},
        "rows of 4,096": {"knobs": {"length": 4096}, "run": {"batch_size": 4}},
        "rows of 1,024, states passed": {
            "knobs": {"length": 1024},
            "run": {"batch_size": 16, "carried": 1024, "carried_steps": 500},
        },
    }
    config.steps = 750
    # A part of all steps and of those without a state, so that stretches of one length do.
    config.eval_every = 125
    # Lengths that are read; losses by position are of each.
    config.tests = ({"length": 65536},)
    # Near and far are other places of the books: with few rows their texts differ more than models.
    config.test_rows, config.test_batch = 64, 1
    # What is put to the test; see griffin_jax.studies.claims.
    short, long, passed = "rows of 1,024", "rows of 4,096", "rows of 1,024, states passed"
    beyond = 8192 if size == "compared" else 32_768

    def near(model, variant):
        return "loss at", model, variant, 512

    def far(model, variant):
        return "loss at", model, variant, beyond

    config.claims = (
        {
            "says": "Griffin and Hawk extrapolate: far beyond the trained length the loss is within 1% of "
            "that near.",
            "if": tuple((far(x, short), "<=", 1.01, near(x, short)) for x in ("Griffin", "Hawk")),
        },
        {
            "says": "Beyond the trained length their loss goes on to fall.",
            "if": tuple((far(x, short), "<", 1.0, near(x, short)) for x in ("Griffin", "Hawk")),
        },
        {
            "says": "The Transformer fails beyond the trained length.",
            "if": ((far("Transformer", short), ">", 1.05, near("Transformer", short)),),
        },
        {
            "says": "Longer rows in training help far out, and little is lost near.",
            "if": tuple(
                condition
                for x in ("Griffin", "Hawk")
                for condition in (
                    (far(x, long), "<=", 1.0, far(x, short)),
                    (near(x, long), "<=", 1.01, near(x, short)),
                )
            ),
        },
        {
            "says": "State passing extends: far out the loss is lower than without.",
            "if": tuple((far(x, passed), "<", 1.0, far(x, short)) for x in ("Griffin", "Hawk")),
        },
    )
    if size == "compared":
        # One seed of each, in rows of one length.
        config.claims, config.seeds = config.claims[:3], (0,)
        config.variants = {short: config.variants[short].to_dict()}
        config.name += "_compared"
        config.title += ", models of 33 million parameters"
        config.measured, config.device = "docs/griffin-tiny/results.json", "NVIDIA H100 80GB HBM3"
        config.shorter = (
            "models of 33 million parameters, trained by `experiments.compare_training` on 210 million "
            "tokens in rows of 1,024, one seed, and read to 16,384. Longer rows and state passing were "
            "not trained."
        )
    if size == "tiny":
        shrink(config, SOURCE, ({"length": 64},))
        config.variants = {"states passed": {"run": {"carried": 16, "carried_steps": 2}}}
    return config
