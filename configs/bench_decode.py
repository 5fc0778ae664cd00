"""Prefill and decoding of one row, near the text's beginning and far into it.

    python -m experiments.benchmark --config=configs/bench_decode.py --output=docs/benchmarks/decode.json

Hardware: one GPU of 80 GB for the default, RecurrentGemma-9B in bfloat16 and in NF4, weights random
and made on the device; about two minutes with compilation, 20 GB of its memory. Anywhere else,
smaller models: `--config.models="('tiny:bfloat16','tiny:nf4')"`.
Expected on an H100: seconds, milliseconds per token, bytes and the shares of the device's measured
limits, and equal times at both positions.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.kind = "decode"
    # MODEL:WEIGHTS or MODEL:WEIGHTS:DTYPE; MODEL is a preset (random weights) or a folder.
    config.models = ("recurrentgemma-9b:bfloat16", "recurrentgemma-9b:nf4")
    # Tokens that are read, 0 to leave prefill out.
    config.prompt = 4096
    # Where decoding is timed: tokens that the state has read.
    config.positions = (4096, 200_000)
    config.tokens = 256
    # Tokens in one dispatch.
    config.burst = 32
    config.repeats = 5
    # Bytes of the array whose copy gives the bandwidth, and the size of the matrices whose product
    # gives the matrix rate; 0 for what suits the device.
    config.copy_bytes = 0
    config.matrix = 0
    config.seed = 0
    return config
