"""Sampled tokens per second over batch sizes, after prompts of 2,048 tokens, until memory runs out.

    XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 python -m experiments.benchmark \\
        --config=configs/bench_throughput.py --output=docs/benchmarks/throughput.json

The model card's figure is the largest. Decoding runs from a state that stands behind 2,048 tokens;
prefill is timed apart, in batches of up to `prefill_tokens`. Weights are random. Hardware: one GPU of
80 GB, about five minutes, most of it compilation, a program per batch size and model.
`--config=configs/bench_throughput.py:tiny` takes seconds on a CPU.
"""

from ml_collections import ConfigDict

from configs import bench_base
from configs.bench_latency import TINY_GEMMA


def get_config(size: str = "") -> ConfigDict:
    config = bench_base.base("throughput", size)
    names = ("recurrentgemma-9b:bfloat16", "recurrentgemma-9b:nf4")
    bench_base.models(config, (*names, "gemma-7b:bfloat16", "gemma-7b:nf4"))
    # Rounded up to powers of two, as the sampler does.
    config.batch_sizes = (1, 8, 32, 64, 256, 512, 1024, 2048)
    # Tokens that each row has read.
    config.prompt = 2048
    # Tokens that are written.
    config.tokens = 96
    # Tokens of a batch in which prompts are read.
    config.prefill_tokens = 32_768
    # Times each figure is taken.
    config.repeats = 3
    if size:
        config.models = (*bench_base.TINY, "tiny-gemma:bfloat16")
        config.shapes["tiny-gemma"], config.shapes["wide"] = TINY_GEMMA, bench_base.WIDE
        config.batch_sizes, config.burst = (1, 4), 8
        config.prompt, config.tokens, config.prefill_tokens = 64, 16, 64
        config.repeats = 2
    return config
