"""Prefill and decoding of one row on a CPU, beside every peer, in the same run.

    python -m experiments.benchmark --config=configs/bench_cpu.py --output=docs/benchmarks/cpu.json

Hardware: two CPU cores and 8 GB of memory; about 20 minutes, most of it compilation of recurrentgemma
and the packing of transformers' weights. The model has the width of RecurrentGemma-2B, 6 of its 26
layers and 32,000 of its 256,000 tokens. Peers that are not installed make a row that says so;
docs/benchmarks says how to install them. `--config=configs/bench_cpu.py:tiny` takes seconds.
"""

from ml_collections import ConfigDict

from configs import bench_base

_PEERS = (
    "float32@transformers",
    "bfloat16@transformers",
    "nf4:float32@transformers",
    "nf4:bfloat16@transformers",
    "float32@recurrentgemma",
    "bfloat16@recurrentgemma",
)
_OURS = ("float32", "bfloat16", "nf4:float32", "nf4:bfloat16")


def get_config(size: str = "") -> ConfigDict:
    config = bench_base.base("generation", size)
    config.accelerator = False
    name = "tiny-64" if size else "2b-6-layers"
    bench_base.models(config, tuple(f"{name}:{rest}" for rest in (*_OURS, *_PEERS)))
    config.shapes["2b-6-layers"] = ConfigDict(
        {"preset": "recurrentgemma-2b", "num_layers": 6, "vocab_size": 32_000}
    )
    # transformers allocates its convolution's state by the width, so both widths must be one.
    config.shapes["tiny-64"] = ConfigDict({"preset": "tiny", "recurrence_width": 64})
    config.burst = 16
    # Tokens that are read.
    config.prompt = 512
    # Tokens that are written.
    config.tokens = 33
    # Times each figure is taken.
    config.repeats = 3
    if size:
        config.prompt, config.tokens, config.repeats = 48, 9, 2
        config.burst = 8
    return config
