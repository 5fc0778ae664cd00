"""What each way of packing costs: bits per byte, and divergence from the model before packing.

    python -m experiments.quantization_quality --config.model=FOLDER --text=FILE --output=FOLDER

Hardware: any; a minute on two CPU cores. `--config=configs/quantization_quality.py:full` has every
block size: about 20 minutes there for griffin-tiny and 200 KB of text. Memory: two models in the dtype
of activations. Expected: NF4 in blocks of 64 costs griffin-tiny 0.1% more bits
per byte, FP4 0.3%; see docs/quantization. The default reads griffin-tiny's model card
with griffin-tiny as it comes, in NF4 itself: give the folder of a 16-bit model for figures that matter.
"""

from ml_collections import ConfigDict, config_dict


def get_config(size: str = "") -> ConfigDict:
    """A quick look, or with "full" the table of docs/quantization."""
    if size not in ("", "full"):
        raise ValueError(f"size {size!r}: there are '' (a quick look) and 'full'")
    config = ConfigDict()
    # "griffin-tiny", a folder of a model, or a name on the Hub.
    config.model = "griffin-tiny"
    # The dtype of activations and, after they are packed and unpacked, of weights.
    config.dtype = "float32"
    # How many bytes of each document are read, from its beginning; 0 for all.
    config.max_bytes = 25_000 if size else 1000
    # Documents read at the same time.
    config.rows = 8
    # Tokens in a call.
    config.chunk = 256
    # Keys kept under unbounded attention.
    config.capacity = config_dict.placeholder(int)
    four_bits = (("nf4", False, 64), ("nf4", True, 64), ("fp4", False, 64))
    # Type, whether scales are quantized too, and weights per scale; 8 bits have a scale a row.
    config.packings = (*four_bits, ("int8", False, None))
    if size:
        blocks = (32, 128, 256, 512, 1024, 2048, 4096)
        config.packings += tuple(("nf4", False, block) for block in blocks)
    return config
