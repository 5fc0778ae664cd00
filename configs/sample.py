"""A model writes text.

    python -m experiments.sample --prompt="It was a dark night"

Hardware: any; two CPU cores are plenty. Memory: 0.6 GB.
Expected: English prose in the manner of old novels, from griffin-tiny, the model of 33 million
parameters that comes with the package. With a RecurrentGemma folder, `--config.model=FOLDER`; a
model that follows instructions answers under `--config.chat=true`.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    # "griffin-tiny", a folder of a model, or a name on the Hub.
    config.model = "griffin-tiny"
    # A folder with a LoRA adapter for the model, as `train` or PEFT writes it.
    config.adapter = config_dict.placeholder(str)
    # The dtype of parameters and activations; None is what a 4-bit folder says, and otherwise bfloat16 on
    # accelerators and float32 on CPUs.
    config.dtype = config_dict.placeholder(str)
    # Go on where a weight holds NaN or infinity.
    config.allow_nan = False
    # Prompts are a user's turns, for models that follow instructions.
    config.chat = False
    # Tokens after a prompt, at most.
    config.max_new_tokens = 128
    config.temperature = 0.8
    config.top_k = config_dict.placeholder(int)
    config.top_p = 0.95
    config.min_p = config_dict.placeholder(float)
    config.repetition_penalty = config_dict.placeholder(float)
    # The seed of the draws; the same seed gives the same text.
    config.seed = 0
    # Strings that end a text, besides the stop tokens of the model.
    config.stop = ()
    # How devices share the model (griffin_jax.sharding.MeshShape); one of them may be -1, the rest.
    config.mesh = {"data": 1, "fsdp": 1, "model": 1, "sequence": 1}
    # Prompts of a file that run together; memory and speed depend on it, and no text.
    config.batch_size = 16
    return config
