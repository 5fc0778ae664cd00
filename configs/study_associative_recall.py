"""Associative recall (MQAR of Zoology) over the size of the state.

    python -m experiments.study --config=configs/study_associative_recall.py --minutes=9

Hardware: one GPU; call it again until all runs are done, each goes on where it stopped. Memory: 16 GB.
Expected: attention recalls all pairs within its window at every width; a recurrence needs a state that
grows with the pairs, so that there is a knee. With :tiny behind the file's name it takes seconds.
"""

from ml_collections import ConfigDict

from configs.studies_base import SMALL, A, R, check_size, shrink, trained


def get_config(size: str = "") -> ConfigDict:
    check_size(size)
    config = trained("associative_recall", "Associative recall (MQAR) over the state's size")
    config.paper = (
        "Zoology (arXiv:2312.04927) sweeps keys, widths and learning rates for attention, Mamba, Hyena, "
        "RWKV and others; nobody published the RG-LRU on it. Asked here: the accuracy over the size of "
        "the state, and where the knee is."
    )
    # What is run otherwise, for captions.
    config.shorter = (
        "two blocks, as in Zoology, and any number of pairs up to 16 in rows of 64 of a vocabulary of "
        "256, in place of up to 64 pairs in rows of up to 512 of a vocabulary of 8,192: at 32 pairs, "
        "rows of 256 and a vocabulary of 2,048 nothing was learned in 2,000 steps of 64 rows. 3,000 "
        "steps of 256 rows at two rates, in bfloat16."
    )
    config.task = "associative_recall"
    config.knobs = {"vocab_size": 256, "length": 64, "pairs": 16, "fewest": 1}
    # Fields of GriffinConfig that the models share; the vocabulary is the task's.
    config.base = SMALL | {"num_layers": 2} | {"attention_window": 32}
    # What each model has otherwise.
    config.models = {
        "Griffin": {"block_pattern": (R, A)},
        "Hawk": {"block_pattern": (R,)},
        "Transformer": {"block_pattern": (A,), "attention_window": None, "rope_fraction": 1.0},
    }
    # Each model keeps the rate of the lowest held-out loss.
    config.learning_rates = (1e-3, 3e-3)
    config.seeds = (0, 1, 2)
    # Updates, and examples in each.
    config.steps = 3000
    config.batch_size = 256
    config.optimizer = {"warmup_steps": 200, "weight_decay": 0.0}
    config.dtype = "bfloat16"
    # Widths that are tried, each a model of its own; and pairs to remember.
    widths, pairs = (32, 64, 128), (2, 4, 8, 16)
    config.test_rows, config.test_batch = 512, 256
    # As in Zoology, accuracies are of answers, not of whole rows.
    config.counted = "tokens"
    # Updates between points of the curve, and between checkpoints.
    config.eval_every = 200
    config.checkpoint_every = 1000

    config.variants = {
        f"width {width}": {"base": {"width": width, "mlp_width": 3 * width}} for width in widths
    }
    config.tests = tuple({"pairs": x, "fewest": 0} for x in pairs)

    # What is put to the test; see griffin_jax.studies.claims.
    def at(model, width):
        return "accuracy", model, f"width {width}", f"pairs {config.knobs['pairs']}, fewest 0"

    # A model that has not learned the task at its largest says nothing of the size of states.
    learned = {
        x: ((at(x, widths[-1]), ">=", least),)
        for x, least in (("Transformer", 0.5), ("Griffin", 0.5), ("Hawk", 0.2))
    }
    config.claims = (
        {
            "says": "Attention recalls nearly all pairs at the larger widths.",
            "if": tuple((at("Transformer", x), ">=", 0.9) for x in widths[-2:]),
            "given": learned["Transformer"],
        },
        {
            "says": "A recurrence recalls more with a larger state: there is a knee.",
            "if": ((at("Hawk", widths[-1]), ">", 2.0, at("Hawk", widths[0])),),
            "given": learned["Hawk"],
        },
        {
            "says": "Griffin recalls more than Hawk of the same width.",
            "if": tuple((at("Griffin", x), ">", 1.0, at("Hawk", x)) for x in widths[-2:]),
            "given": learned["Griffin"],
        },
    )
    if size == "tiny":
        shrink(config, {"vocab_size": 32, "length": 16, "pairs": 3})
    return config
