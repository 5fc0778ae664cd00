"""RecurrentGemma-9B is served in 16 bits on a host with eight TPU v5e chips.

    python -m experiments.serve --config=configs/serve_tpu.py --config.model=FOLDER

Hardware: a v5e-8 host. Memory: 4.3 GB of weights on each chip of 16 GB, as four share a copy of the model;
two copies share the slots. Expected: not run on TPUs yet; docs/tpu says what was compiled for them.
"""

from ml_collections import ConfigDict

from configs import serve_gpu


def get_config() -> ConfigDict:
    config = serve_gpu.get_config()
    config.quantization = None
    config.mesh = {"data": 2, "fsdp": 1, "model": 4, "sequence": 1}
    config.slots = 128
    return config
