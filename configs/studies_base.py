"""The parts that the studies' configs share: the models that the papers compare. It is no config by itself."""

from pathlib import Path

from ml_collections import ConfigDict

import griffin_jax

# What is read in seconds: texts that are there wherever the package is.
PACKAGE = Path(griffin_jax.__file__).parent
_SOURCE = str(PACKAGE / "models" / "state.py")
SOURCE = {"train": _SOURCE, "heldout": _SOURCE, "length": 32}

R, A = "recurrent", "attention"
# Five blocks, as for figure 6: Griffin has local attention in the third.
FIVE = {
    "Griffin": {"block_pattern": (R, R, A, R, R)},
    "Hawk": {"block_pattern": (R,)},
    "Transformer": {"block_pattern": (A,), "attention_window": None, "rope_fraction": 1.0},
    "Transformer without positions": {
        "block_pattern": (A,),
        "attention_window": None,
        "rope_fraction": 0.0,
    },
    "Transformer with a window": {"block_pattern": (A,), "rope_fraction": 1.0},
}
# 64 wide, about 250,000 parameters.
SMALL = {
    "width": 64,
    "mlp_width": 192,
    "num_layers": 5,
    "num_heads": 4,
    "logits_soft_cap": None,
    "scale_embeddings": False,
}
# With other recurrences in Griffin's place.
RECURRENCES = {
    name: {"block_pattern": (kind, kind, A)}
    for name, kind in {
        "RG-LRU": "recurrent",
        "CG-LRU": "cg_lru",
        "LRU": "lru",
        "GRU": "gru",
        "Mamba": "mamba",
    }.items()
}
# About 9 million parameters on the vocabulary of griffin-tiny, 8,192.
TEXT = {
    "width": 256,
    "mlp_width": 768,
    "num_layers": 8,
    "num_heads": 4,
    "attention_window": 512,
}


def check_size(size: str, *others: str) -> None:
    """Raises ValueError for what stands behind a file's name and is none of its sizes."""
    sizes = ("tiny", *others)
    if size and size not in sizes:
        there = ", ".join(map(repr, sizes))
        raise ValueError(f"size {size!r}: there are '' (the whole study) and {there}")


def trained(name: str, title: str) -> ConfigDict:
    """A study that trains models."""
    config = ConfigDict()
    # The name of its files.
    config.name = name
    config.kind = "trained"
    config.title = title
    return config


def text(name: str, title: str) -> ConfigDict:
    """A study that trains models on text."""
    config = trained(name, title)
    config.task = "text"
    # Files as the flags name them; the tokenizer is griffin-tiny's.
    config.knobs = {"train": "train.jsonl.xz", "heldout": "heldout.jsonl.xz", "length": 1024}
    config.learning_rates = (2e-3,)
    config.seeds = (0, 1, 2)
    # Rows in an update.
    config.batch_size = 16
    config.optimizer = {"warmup_steps": 100}
    config.dtype = "bfloat16"
    # One run after another: each fills a GPU.
    config.together = 1
    config.loss_chunks = 4
    config.test_rows, config.test_batch = 128, 16
    # Updates between points of the curve, and between checkpoints.
    config.eval_every = 100
    config.checkpoint_every = 1000
    # On text nothing is solved; a column says when the loss is below this.
    config.solved = 5.0
    return config


def shrink(config: ConfigDict, knobs: dict, tests: tuple = ({},)) -> None:
    """Makes a study one of seconds, which shows that it runs and nothing else."""
    config.name += "_tiny"
    config.shorter = "models so small that seconds suffice, and figures that mean nothing."
    small = {"width": 16, "mlp_width": 24, "num_layers": 1, "num_heads": 2}
    config.base = dict(config.base) | small
    config.knobs, config.tests, config.claims = knobs, tests, ()
    config.models = {name: config.models[name] for name in list(config.models)[:1]}
    config.variants, config.seeds, config.learning_rates = {"": {}}, (0,), (3e-3,)
    config.dtype, config.loss_chunks = "float32", 1
    config.steps, config.batch_size, config.optimizer = 4, 4, {"warmup_steps": 1}
    config.test_rows, config.test_batch = 4, 4
    config.eval_every, config.checkpoint_every = 2, 2
