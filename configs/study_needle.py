"""A needle in a haystack: the value of a key that stands once in a text of fillers.

    python -m experiments.study --config=configs/study_needle.py --minutes=9

Hardware: one GPU; call it again until all runs are done, each goes on where it stopped. Memory: 16 GB.
:cpu behind the file's name is shorter rows and narrower models for a CPU. Expected: the state finds what
stands out of its text at any place, up to the trained length, and no longer beyond it. With :tiny it takes seconds.
"""

from ml_collections import ConfigDict

from configs.studies_base import FIVE, SMALL, check_size, shrink, trained

# How many times the trained length texts are read.
TIMES = (1, 2, 4, 8, 16)


def get_config(size: str = "") -> ConfigDict:
    check_size(size, "cpu")
    config = trained("needle", "A needle in a haystack")
    config.paper = (
        "No figure of the Griffin papers: a key and its value stand once in a text, at any place, and the "
        "value is asked for at the end. Long-document reading in chunks (OPRM, arXiv:2505.07793) is "
        "put to this test."
    )
    # What is run otherwise, for captions.
    config.shorter = (
        "models of five blocks and width 64, trained on the task itself in rows of 256 with a window of "
        "128, three needles of other keys in each; 3,000 steps of 64 rows at one rate, in bfloat16."
    )
    config.task = "needle"
    config.knobs = {"length": 256, "number": 2, "others": 3}
    # Fields of GriffinConfig that the models share; the vocabulary is the task's.
    config.base = SMALL | {"attention_window": 128}
    # What each model has otherwise.
    config.models = {x: FIVE[x] for x in ("Griffin", "Hawk", "Transformer")}
    # Each model keeps the rate of the lowest held-out loss.
    config.learning_rates = (1e-3,)
    config.seeds = (0, 1, 2)
    # Updates, and examples in each.
    config.steps = 3000
    config.batch_size = 64
    config.optimizer = {"warmup_steps": 300, "weight_decay": 0.0}
    config.dtype = "bfloat16"
    config.test_rows, config.test_batch = 128, 32
    # Updates between points of the curve, and between checkpoints.
    config.eval_every = 100
    config.checkpoint_every = 500
    if size == "cpu":
        config.name += "_cpu"
        config.shorter = (
            "models of three blocks and width 32, trained on the task itself in rows of 64 with a window "
            "of 32, without other needles; 1,500 steps of 32 rows at one rate, in float32."
        )
        config.knobs = {"length": 64, "number": 2}
        config.base = SMALL | {
            "width": 32,
            "mlp_width": 96,
            "num_layers": 3,
            "num_heads": 2,
            "attention_window": 32,
        }
        config.models = {
            "Griffin": {"block_pattern": ("recurrent", "attention", "recurrent")},
            "Hawk": FIVE["Hawk"],
            "Transformer": FIVE["Transformer"],
        }
        config.learning_rates = (3e-3,)
        config.steps, config.batch_size, config.dtype = 1500, 32, "float32"
        config.optimizer = {"warmup_steps": 100, "weight_decay": 0.0}
    length = config.knobs["length"]
    # Lengths and places at which accuracy is measured: at any place, and at the beginning.
    config.tests = tuple(
        {"length": times * length} | place for times in TIMES for place in ({}, {"place": 0.0})
    )
    # What is put to the test; see griffin_jax.studies.claims.
    config.claims = (
        {
            "says": "Griffin and Hawk find the needle wherever it is, up to the trained length.",
            "if": tuple(
                (("accuracy", model, test), ">=", 0.95)
                for model in ("Griffin", "Hawk")
                for test in (f"length {length}", f"length {length}, place 0.0")
            ),
        },
        {
            "says": "At 16 times that length they lose a needle that stands at the beginning.",
            "if": tuple(
                (("accuracy", model, f"length {16 * length}, place 0.0"), "<", 0.5)
                for model in ("Griffin", "Hawk")
            ),
            "given": tuple(
                (("steps to learn", model), "<=", config.steps) for model in ("Griffin", "Hawk")
            ),
        },
    )
    if size == "tiny":
        small = {"length": 16, "number": 1, "others": 1}
        shrink(config, small, ({"length": 16}, {"length": 32, "place": 0.0}))
    return config
