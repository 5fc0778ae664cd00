"""The model card's latency: seconds to sample N tokens after a prompt of 4,096, one row.

    python -m experiments.benchmark --config=configs/bench_latency.py --output=docs/benchmarks/latency.json

From the prompt's arrival to the N-th token, no token ends a text. One long generation gives all rows
and two short ones repeat the first; compilation is apart. Weights are random and made on the device.
Hardware: one GPU of 80 GB, about six minutes at the defaults; `--config.most="(1024,1024,1024,1024)"`
stops sooner, one number per model. `--config=configs/bench_latency.py:tiny` takes seconds on a CPU.
"""

from ml_collections import ConfigDict

from configs import bench_base


def get_config(size: str = "") -> ConfigDict:
    config = bench_base.base("latency", size)
    names = ("recurrentgemma-9b:bfloat16", "recurrentgemma-9b:nf4")
    bench_base.models(config, (*names, "gemma-7b:bfloat16", "gemma-7b:nf4"))
    config.burst = 128
    # Tokens that are read.
    config.prompt = 4096
    # After how many written tokens the clock is read.
    config.tokens = (128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
    # The most tokens that each model samples.
    config.most = (16_384, 16_384, 4096, 4096)
    # Generations of each model: one long one, and short ones.
    config.repeats = 3
    # Tokens of the repetitions.
    config.repeat_most = 512
    if size:
        config.models = (*bench_base.TINY, "tiny-gemma:bfloat16")
        config.shapes["tiny-gemma"] = TINY_GEMMA
        config.prompt, config.burst = 120, 16
        config.tokens, config.most, config.repeat_most = (16, 32, 160), (160, 32, 160), 16
    return config


TINY_GEMMA = ConfigDict(
    {
        "preset": "gemma-7b",
        "vocab_size": 384,
        "width": 64,
        "mlp_width": 192,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_size": 16,
        "recurrence_width": 64,
    }
)
