"""Looks into a model as it reads a text.

    python -m experiments.inspect --prompt="It was a dark night" --output=runs/inspect

Hardware: any; two CPU cores are plenty. Memory: 0.6 GB and 40 KB a token.
Expected: in the output's folder six plots and index.html, a page that needs no other file: decays and
gates of each layer, the recurrence as attention beside the attention layers, what each layer would
predict, and how long the states hold one token.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    # "griffin-tiny", a folder of a model, or a name on the Hub; it must have RG-LRU layers.
    config.model = "griffin-tiny"
    # The dtype of parameters and activations; None as for `sample`.
    config.dtype = config_dict.placeholder(str)
    # The token whose memory is drawn, by its number in the text; 0 is BOS.
    config.token = 1
    # Tokens of the text that are read, at most; attention takes their square.
    config.max_tokens = 512
    return config
