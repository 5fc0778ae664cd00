"""A model is served over HTTP, to OpenAI's clients and to a browser.

    python -m experiments.serve

Hardware: any; two CPU cores are plenty. Memory: 0.7 GB.
Expected: griffin-tiny at http://127.0.0.1:8000, ready within seconds; `--config.model=FOLDER` serves
another model, in 16 or 4 bits.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    # "griffin-tiny", a folder of a model, or a name on the Hub.
    config.model = "griffin-tiny"
    # What clients call the model; by default the last part of `model`.
    config.name = config_dict.placeholder(str)
    # The address to listen on; 127.0.0.1 is this machine only.
    config.host = "127.0.0.1"
    config.port = 8000
    # A file with one API key per line; the environment's GRIFFIN_API_KEY is one, too.
    config.api_key_file = config_dict.placeholder(str)
    # How many texts are generated at once.
    config.slots = 8
    # How many more may wait.
    config.waiting = 256
    # The folder of saved contexts; by default they end with the process.
    config.contexts = config_dict.placeholder(str)
    # How devices share the model (griffin_jax.sharding.MeshShape); one of them may be -1, the rest.
    config.mesh = {"data": 1, "fsdp": 1, "model": 1, "sequence": 1}
    return config
