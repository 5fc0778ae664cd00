"""8 bits, as bitsandbytes packs them for LLM.int8: 8 bits a linear weight and a scale a row.

    python -m experiments.pack --config.model=FOLDER --output=FOLDER --config=configs/pack_int8.py

Hardware: any; no accelerator is needed. Memory: the largest tensor in float32 a few times over, below
2 GB for a 2B model, and room on disk for the result. Expected: a relative error of about 0.008 in
every group of linear weights, and a folder that `griffin_jax.load` and transformers with
bitsandbytes read. The default, griffin-tiny, is in 4 bits already and is refused;
`python -m experiments.convert --config.dequantize=true` makes a 16-bit folder of it to pack.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    # "griffin-tiny", a folder of a model, or a name on the Hub.
    config.model = "griffin-tiny"
    # "huggingface", which transformers reads too, or "orbax", ours.
    config.format = "huggingface"
    # Fields of griffin_jax.QuantizationConfig, which are those of transformers.
    config.quantization = ConfigDict()
    config.quantization.load_in_8bit = True
    # From where transformers multiplies activations in 16 bits; here all of them are.
    config.quantization.llm_int8_threshold = 6.0
    # Modules to leave whole, by name; None is the output head.
    config.quantization.llm_int8_skip_modules = config_dict.placeholder(tuple)
    return config
