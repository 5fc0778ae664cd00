"""Speed of training a Griffin of a billion parameters, over sequence lengths.

    XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 python -m experiments.benchmark \\
        --config=configs/bench_training.py --output=docs/benchmarks/training.json

The model of configs/train_griffin_1b.py, AdamW on float32 master weights, bfloat16 activations, random
weights and tokens, 32,768 tokens a batch at every length. Three ways to spend memory at the first
length, and the fastest at the others; sequences are one document each, but for the last row.
Hardware: one GPU of 80 GB, about 2.5 minutes, most of it compilation. On a CPU, `--config=configs/bench_training.py:tiny` takes seconds.
Expected on an H100: at least 40% model FLOP utilization at 2,048 tokens, and tokens per second within
15% of each other.
"""

from ml_collections import ConfigDict

from configs import bench_base, train_griffin_1b
from griffin_jax.config import TINY

MODELS = {
    "1b": train_griffin_1b.MODEL,
    "2b": train_griffin_1b.MODEL.replace(num_layers=24),
    "tiny": TINY,
}


def get_config(size: str = "1b") -> ConfigDict:
    """The settings; see griffin_jax.benchmarks.training."""
    if size not in MODELS:
        raise ValueError(f"config {size!r}: there are {', '.join(MODELS)}")
    config = ConfigDict()
    # What is measured.
    config.kind = "training"
    # Refuse to run where JAX finds a CPU alone.
    config.accelerator = size != "tiny"
    # The shape: fields of a GriffinConfig.
    config.model = MODELS[size].to_dict()
    # Tokens of a sequence.
    config.lengths = (2048, 8192, 32_768)
    # Tokens of a batch, the same at every length.
    config.tokens = 32_768
    # REMAT:LOSS_CHUNKS:MICROBATCHES.
    config.variants = ("none:8:1", "dots:8:1", "block:8:1")
    # The dtype of activations.
    config.dtype = "bfloat16"
    # Steps that are timed.
    config.repeats = 6
    # Tokens of each document in a row whose sequences are packed; 0 for no such row.
    config.document = 512
    bench_base.mesh(config, data=-1)
    if size == "2b":
        config.variants = ("block:8:1",)
    if size == "tiny":
        config.lengths = (64, 256)
        config.tokens = 256
        config.variants = ("none:1:1", "block:4:1")
        config.dtype = "float32"
        config.repeats = 2
        config.document = 16
    return config
