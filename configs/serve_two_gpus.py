"""RecurrentGemma-9B is served in 16 bits on two GPUs of one host, each of which holds half of it.

    python -m experiments.serve --config=configs/serve_two_gpus.py --config.model=FOLDER

Hardware: two GPUs with 24 GB or more. Memory: 8.6 GB of weights on each, and 26 MB of state for each slot.
Expected: as configs/serve_gpu.py, of a model that one of the GPUs does not hold.
"""

from ml_collections import ConfigDict

from configs import serve_gpu


def get_config() -> ConfigDict:
    config = serve_gpu.get_config()
    config.quantization = None
    config.mesh = {"data": 1, "fsdp": 1, "model": 2, "sequence": 1}
    return config
