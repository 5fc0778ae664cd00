"""Griffin, Hawk and an MQA Transformer of the same size, trained on the same tokens, side by side.

    python -m experiments.compare_training --config=configs/compare_tiny.py --output=docs/griffin-tiny

Needs three finished runs, of configs/train_griffin_tiny.py, train_hawk_tiny.py and
train_transformer_tiny.py with their --run= as below, and the held-out text. Hardware: one H100,
about a minute for each model; a CPU takes hours, but what one machine has measured another reads.
Expected: docs/griffin-tiny/README.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The runs, and how their models are measured; see griffin_jax.training.evaluate."""
    config = ConfigDict()
    # NAME=FOLDER
    config.runs = (
        "Griffin=runs/griffin-tiny",
        "Hawk=runs/hawk-tiny",
        "Transformer=runs/transformer-tiny",
    )
    # Held-out text, as a file.
    config.text = "heldout.jsonl.xz"
    # Positions between which loss is averaged.
    config.edges = (0, 64, 256, 512, 1024, 2048, 4096, 8192, 16384)
    # The dtype of activations.
    config.dtype = "bfloat16"
    # Tokens in a call.
    config.chunk = 1024
    # Under unbounded attention: keys kept, and tokens read before the oldest are dropped.
    config.cache = (768, 256)
    return config
