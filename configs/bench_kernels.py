"""Every operation at a model's shapes, by every kernel that serves it, in a loop on the device.

    python -m experiments.benchmark --config=configs/bench_kernels.py --output=docs/benchmarks/kernels.json

4-bit, 8-bit and whole products, the linear recurrence (beside jax.lax.associative_scan and recurrentgemma's
scan, where installed) and the RG-LRU, forward and backward, local attention, a decoding step's
residual blocks and the output head: microseconds, bytes, FLOPs and shares of the device's measured
limits. Hardware: one GPU of 80 GB, about two minutes, most of it compilation.
`--config=configs/bench_kernels.py:tiny` takes seconds on a CPU.
"""

from ml_collections import ConfigDict

from configs import bench_base


def get_config(size: str = "") -> ConfigDict:
    config = bench_base.base("kernels", size)
    # A preset, whose shapes the operations have.
    config.model = "recurrentgemma-9b"
    config.shapes = ConfigDict()
    # What is timed.
    config.operations = (
        "packed_matmul",
        "int8_matmul",
        "dense_matmul",
        "linear_recurrence",
        "jax.lax.associative_scan",
        "recurrentgemma's scan",
        "rg_lru",
        "local_attention",
        "residual_block",
        "head",
    )
    # The dtype of activations, and of weights that are not packed.
    config.dtype = "bfloat16"
    # The type of 4-bit weights.
    config.quant_type = "nf4"
    # Rows of the products.
    config.rows = (1, 8, 64)
    # Tokens of the recurrences, and of the prefill chunk that attends.
    config.time = 8192
    config.chunk = 2048
    # Different weights that a turn of the loop reads, more than a cache holds.
    config.spread_bytes = 2**27
    # How long a loop takes at a twentieth of the device's limit; at a larger share it takes less.
    config.seconds = 0.2
    # Times each figure is taken.
    config.repeats = 5
    if size:
        config.model, config.rows, config.time, config.chunk = "tiny", (1, 4), 64, 64
        config.spread_bytes, config.seconds, config.repeats = 1, 0.0, 2
    return config
