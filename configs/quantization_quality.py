"""What each way of packing costs: bits per byte, and divergence from the model before packing.

    python -m experiments.quantization_quality --checkpoint=FOLDER --text=FILE --output=FOLDER

Hardware: any; about 20 minutes on two CPU cores for griffin-tiny and 200 KB of text. Memory: two
models in the dtype of activations. Expected: NF4 in blocks of 64 costs griffin-tiny 0.1% more bits
per byte, FP4 0.3%; see docs/quantization. The default reads this repository's README with
griffin-tiny as it comes, in NF4 itself: give the folder of a 16-bit model for figures that matter.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    # Of activations and, after they are packed and unpacked, of weights.
    config.dtype = "float32"
    # Of each document, so many bytes from its beginning; 0 for all.
    config.max_bytes = 25_000
    # Documents read at the same time.
    config.rows = 8
    # Tokens in a call.
    config.chunk = 256
    # Keys kept under unbounded attention.
    config.capacity = config_dict.placeholder(int)
    # Type, whether scales are quantised too, and weights per scale.
    config.packings = (
        ("nf4", False, 64),
        ("nf4", True, 64),
        ("fp4", False, 64),
        ("nf4", False, 32),
        ("nf4", False, 128),
        ("nf4", False, 256),
        ("nf4", False, 512),
        ("nf4", False, 1024),
        ("nf4", False, 2048),
        ("nf4", False, 4096),
    )
    return config
