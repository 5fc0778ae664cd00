"""Prefill and decoding of one row: near the text's beginning, far into it, and beside the peers.

    python -m experiments.benchmark --config=configs/bench_decode.py --output=docs/benchmarks/decode.json

Hardware: one GPU of 80 GB for the default, RecurrentGemma-9B in bfloat16 and in NF4, weights random
and made on the device; about two minutes with compilation, 20 GB of its memory.
Peers and 8-bit weights join with --config.models, such as
"('recurrentgemma-9b:int8:bfloat16','recurrentgemma-9b:nf4','recurrentgemma-9b:nf4:float16@transformers','recurrentgemma-9b:bfloat16@recurrentgemma')";
recurrentgemma alone compiles for over three minutes. `--config=configs/bench_decode.py:tiny` takes
seconds on a CPU.
Expected on an H100: seconds, milliseconds per token, bytes and the shares of the device's measured
limits; at both positions, and over a million tokens, the same time and memory.
"""

from ml_collections import ConfigDict

from configs import bench_base


def get_config(size: str = "") -> ConfigDict:
    config = bench_base.base("decode", size)
    bench_base.models(config, ("recurrentgemma-9b:bfloat16", "recurrentgemma-9b:nf4"))
    # Tokens that are read; 0 leaves prefill out.
    config.prompt = 4096
    # Tokens that are written, all at one position.
    config.tokens = 256
    # Where decoding is timed again: tokens that the state has read.
    config.positions = (4096, 200_000)
    # Streaming in small bursts beside the same text in one dispatch; compiles one program more.
    config.stream = False
    # Tokens of one prompt that is read in chunks, such as 1_000_000; 0 for none.
    config.long_prompt = 0
    # Times each figure is taken.
    config.repeats = 5
    if size:
        config.models = bench_base.TINY
        config.prompt, config.tokens, config.burst, config.repeats = 64, 24, 8, 2
        config.positions = (64, 20_000)
        config.stream = True
        config.long_prompt = 8192
    return config
