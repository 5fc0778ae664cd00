"""Selective copying, figure 6a of the Griffin paper.

    python -m experiments.study --config=configs/study_selective_copying.py --minutes=9

Hardware: one GPU; call it again until all runs are done, each goes on where it stopped. Memory: 8 GB.
Expected, by the paper: all models solve it; Griffin learns about as fast as the Transformer, Hawk much
slower. With :tiny behind the file's name it takes seconds on a CPU and shows nothing.
"""

from ml_collections import ConfigDict

from configs.studies_base import FIVE, SMALL, check_size, shrink, trained


def get_config(size: str = "") -> ConfigDict:
    check_size(size)
    config = trained("selective_copying", "Selective copying (figure 6a)")
    config.paper = (
        "Five blocks of width 64, about 250,000 parameters, learn to copy 16 data tokens that stand at "
        "random among noise, in rows of 1,024 of a vocabulary of 16; the window is 512. The paper says "
        "that all solve it, that Griffin learns as fast as the Transformer, and Hawk much slower."
    )
    # What is run otherwise, for captions.
    config.shorter = "6,000 steps of 64 rows at one rate, in bfloat16."
    config.task = "selective_copying"
    config.knobs = {"vocab_size": 16, "length": 1024, "data_tokens": 16}
    # Fields of GriffinConfig that the models share; the vocabulary is the task's.
    config.base = SMALL | {"attention_window": 512}
    # What each model has otherwise.
    config.models = {x: FIVE[x] for x in ("Griffin", "Hawk", "Transformer")}
    # Each model keeps the rate of the lowest held-out loss.
    config.learning_rates = (2e-3,)
    config.seeds = (0, 1, 2)
    # Updates, and examples in each.
    config.steps = 6000
    config.batch_size = 64
    config.optimizer = {"warmup_steps": 500, "weight_decay": 0.0}
    config.dtype = "bfloat16"
    config.test_rows = 512
    # Updates between points of the curve, and between checkpoints.
    config.eval_every = 100
    config.checkpoint_every = 1000
    # What is put to the test; see griffin_jax.studies.claims.
    config.claims = (
        {
            "says": "All models solve it.",
            "if": tuple((("steps to learn", x), "<=", config.steps) for x in config.models),
        },
        {
            "says": "Griffin learns about as fast as the Transformer.",
            "if": ((("steps to learn", "Griffin"), "<=", 1.5, ("steps to learn", "Transformer")),),
        },
        {
            "says": "Hawk learns much slower than Griffin.",
            "if": ((("steps to learn", "Hawk"), ">=", 2.0, ("steps to learn", "Griffin")),),
        },
        {
            "says": "Early on, at step 2,500, Hawk is behind Griffin, and Griffin behind the Transformer.",
            "if": tuple(
                (("loss at step", slow, 2500), ">", 1.0, ("loss at step", fast, 2500))
                for slow, fast in (("Hawk", "Griffin"), ("Griffin", "Transformer"))
            ),
        },
    )
    if size == "tiny":
        shrink(config, {"vocab_size": 8, "length": 16, "data_tokens": 4})
    return config
