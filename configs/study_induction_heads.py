"""Induction heads, figure 6b of the Griffin paper.

    python -m experiments.study --config=configs/study_induction_heads.py --minutes=9

Hardware: one GPU; call it again until all runs are done, each goes on where it stopped. Memory: 16 GB.
Expected, by the paper: all solve it at the trained length of 256; the Transformer fails beyond it, and
Hawk and Griffin extrapolate. With :tiny behind the file's name it takes seconds on a CPU.
"""

from ml_collections import ConfigDict

from configs.studies_base import FIVE, SMALL, check_size, shrink, trained


def get_config(size: str = "") -> ConfigDict:
    check_size(size)
    config = trained("induction_heads", "Induction heads (figure 6b)")
    config.paper = (
        "Five blocks of width 64 learn to recall what followed a special token, in rows of 256; the "
        "window is 128. Read up to 100 times longer, the Transformer with rotary positions fails beyond "
        "256, and Hawk and Griffin extrapolate."
    )
    # What is run otherwise, for captions.
    config.shorter = "3,000 steps, one learning rate, of 64 rows, in bfloat16."
    config.task = "induction_heads"
    config.knobs = {"vocab_size": 16, "length": 256}
    # Fields of GriffinConfig that the models share; the vocabulary is the task's.
    config.base = SMALL | {"attention_window": 128}
    # What each model has otherwise.
    config.models = FIVE
    # Each model keeps the rate of the lowest held-out loss.
    config.learning_rates = (1e-3,)
    config.seeds = (0, 1, 2)
    # Updates, and examples in each.
    config.steps = 3000
    config.batch_size = 64
    config.optimizer = {"warmup_steps": 500, "weight_decay": 0.0}
    config.dtype = "bfloat16"
    # Lengths at which accuracy is measured.
    lengths = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 25600)
    config.tests = tuple({"length": length} for length in lengths)
    config.test_rows, config.test_batch = 128, 64
    # Updates between points of the curve, and between checkpoints.
    config.eval_every = 250
    config.checkpoint_every = 1000
    # What is put to the test; see griffin_jax.studies.claims.
    config.claims = (
        {
            "says": "All solve it at the trained length.",
            "if": tuple((("steps to learn", x), "<=", config.steps) for x in config.models),
        },
        {
            "says": "The Transformer with rotary positions fails beyond the trained length.",
            "if": (
                (
                    ("accuracy", "Transformer", "length 1024"),
                    "<",
                    0.5,
                    ("accuracy", "Transformer", "length 256"),
                ),
            ),
        },
        {
            "says": "Hawk and Griffin extrapolate, up to 100 times the trained length.",
            "if": tuple(
                (("accuracy", x, f"length {length}"), ">=", 0.9)
                for x in ("Hawk", "Griffin")
                for length in (1024, 25600)
            ),
        },
    )
    if size == "tiny":
        shrink(config, {"vocab_size": 8, "length": 12}, ({"length": 12}, {"length": 24}))
    return config
