"""NF4, as bitsandbytes packs it: 4.5 bits a linear weight.

    python -m experiments.pack --config.model=FOLDER --output=FOLDER

Hardware: any; no accelerator is needed. Memory: the largest tensor in float32 a few times over, below
2 GB for a 2B model, and room on disk for the result. Expected: a relative error of about 0.09 in
every group of linear weights, and a folder that `griffin_jax.load` and transformers with
bitsandbytes read. The default, griffin-tiny, is in 4 bits already and comes out as it is;
`python -m experiments.convert --config.dequantize=true` makes a 16-bit folder of it to pack.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    # "griffin-tiny", a folder of a model, or a name on the Hub.
    config.model = "griffin-tiny"
    # "huggingface", which transformers reads too, or "orbax", ours.
    config.format = "huggingface"
    # Weights per scale. transformers makes 64 only, but reads 32, 64, ... 4096.
    config.block_size = 64
    # Fields of griffin_jax.QuantizationConfig, which are those of transformers.
    config.quantization = ConfigDict()
    config.quantization.bnb_4bit_quant_type = "nf4"
    # Scales in 8 bits as well: 4.13 bits a weight instead of 4.5.
    config.quantization.bnb_4bit_use_double_quant = False
    # What loaders compute in unless they are told otherwise.
    config.quantization.bnb_4bit_compute_dtype = "bfloat16"
    # What the file calls the packed bytes.
    config.quantization.bnb_4bit_quant_storage = "uint8"
    # Modules to leave whole, by name; None is the output head.
    config.quantization.llm_int8_skip_modules = config_dict.placeholder(tuple)
    return config
