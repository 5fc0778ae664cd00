"""RecurrentGemma-9B is served in 4 bits on one GPU.

    python -m experiments.serve --config=configs/serve_gpu.py --config.model=FOLDER

Hardware: a GPU with 24 GB or more. Memory: 6.4 GB of weights, and 26 MB of state for each slot, of which
fewer fit on smaller GPUs (`--config.slots`). `--config.quantization=None` serves it in 16 bits, which
takes 17.2 GB. Expected: the folder's own 4 bits, or the folder packed to NF4 on the way; ready after
its programs are compiled, which takes minutes the first time and seconds after.
"""

from ml_collections import ConfigDict

from configs import serve


def get_config() -> ConfigDict:
    config = serve.get_config()
    config.model = "google/recurrentgemma-9b-it"
    config.quantization = "nf4"
    config.slots = 64
    config.waiting = 512
    config.prefix_cache_bytes = 2 * 2**30
    config.prefix_cache_host_bytes = 8 * 2**30
    config.context_device_bytes = 2 * 2**30
    config.context_bytes = 16 * 2**30
    return config
