"""Phonebook lookup, figure 6c of the Griffin paper.

    python -m experiments.study --config=configs/study_phonebook.py --minutes=9

Hardware: one GPU; call it again until all runs are done, each goes on where it stopped. Memory: 16 GB.
Expected, by the paper: Griffin is perfect up to its window and then decays, Hawk earlier, and the
Transformer is perfect up to its trained length. With :tiny behind the file's name it takes seconds.
"""

from ml_collections import ConfigDict

from configs.studies_base import FIVE, SMALL, check_size, shrink, trained


def get_config(size: str = "") -> ConfigDict:
    check_size(size)
    config = trained("phonebook", "Phonebook lookup (figure 6c)")
    config.paper = (
        "Models of 7B parameters, trained on text, look up a number in a list behind two examples. "
        "Griffin is perfect up to its window of 1,024 and then decays, Hawk earlier; the Transformer is "
        "perfect up to its trained length of 2,048."
    )
    # What is run otherwise, for captions.
    config.shorter = (
        "models of five blocks and width 64, trained on the task itself, on books of any size that fits "
        "rows of 256, with a window of 128, and read up to 8 windows. Names are of two letters and "
        "numbers of two digits: with three and four, in rows of 512 and full books alone, nothing was "
        "learned in 3,000 steps of 64 rows. 4,000 steps of 128 rows at one rate, in bfloat16."
    )
    config.task = "phonebook"
    config.knobs = {
        "length": 256,
        "name": 2,
        "number": 2,
        "train_examples": True,
        "fewest": 3,
    }
    # Fields of GriffinConfig that the models share; the vocabulary is the task's.
    config.base = SMALL | {"attention_window": 128}
    # What each model has otherwise.
    config.models = {x: FIVE[x] for x in ("Griffin", "Hawk", "Transformer")}
    # Each model keeps the rate of the lowest held-out loss.
    config.learning_rates = (1e-3,)
    config.seeds = (0, 1, 2)
    # Updates, and examples in each.
    config.steps = 4000
    config.batch_size = 128
    config.optimizer = {"warmup_steps": 500, "weight_decay": 0.0}
    config.dtype = "bfloat16"
    # Lengths at which accuracy is measured, of the last number alone.
    lengths = (64, 96, 128, 192, 256, 384, 512, 768, 1024)
    alone = {"train_examples": False, "fewest": 0}
    config.tests = tuple({"length": length} | alone for length in lengths)
    config.test_rows, config.test_batch = 256, 64
    # Updates between points of the curve, and between checkpoints.
    config.eval_every = 100
    config.checkpoint_every = 1000

    # What is put to the test; see griffin_jax.studies.claims.
    window, trained_on = config.base["attention_window"], config.knobs["length"]

    def at(model, length):
        return "accuracy", model, f"length {length}, train_examples False, fewest 0"

    config.claims = (
        {
            "says": "Griffin is perfect up to its window, and decays beyond the trained length.",
            "if": (
                (at("Griffin", window), ">=", 0.95),
                (at("Griffin", lengths[-1]), "<", 0.8, at("Griffin", window)),
            ),
            "given": ((("steps to learn", "Griffin"), "<=", config.steps),),
        },
        {
            "says": "Hawk decays earlier than Griffin.",
            "if": tuple(
                (at("Hawk", x), "<", 1.0, at("Griffin", x)) for x in (trained_on, 2 * trained_on)
            ),
            "given": ((("steps to learn", "Griffin"), "<=", config.steps),),
        },
        {
            "says": "The Transformer is perfect up to its trained length, and fails beyond.",
            "if": (
                (at("Transformer", trained_on), ">=", 0.95),
                (at("Transformer", 2 * trained_on), "<", 0.5),
            ),
            "given": ((("steps to learn", "Transformer"), "<=", config.steps),),
        },
    )
    if size == "tiny":
        shrink(config, {"length": 40, "name": 2, "number": 2}, ({"length": 40}, {"length": 52}))
    return config
