"""From one format, dtype or packing to another.

    python -m experiments.convert --config.model=FOLDER --output=FOLDER --config.format=huggingface
    python -m experiments.convert --config.model=FOLDER --output=FOLDER --config.dequantize=true

Hardware: any; no accelerator is needed. Memory: for "huggingface" the largest tensor in float32 a few
times over, and room on disk for the result. For "orbax", which writes a whole tree at once, room on
disk for it twice; the tree is mapped from there and, as long as memory is free, stays in it.
Expected: the default writes griffin-tiny in our own format; the values are the same.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    # "griffin-tiny", a folder of a model, or a name on the Hub.
    config.model = "griffin-tiny"
    # "orbax", ours, which holds any config; or "huggingface", which transformers reads.
    config.format = "orbax"
    # float32, float16 or bfloat16, of everything outside of packed weights; None leaves all as is.
    config.dtype = config_dict.placeholder(str)
    # Give 4-bit weights back as arrays, of this dtype or else of the one that they were made of.
    config.dequantize = False
    return config
