"""Loading holds the weights once, and beside them one leaf at most."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from griffin_jax.checkpoints import save_leaves
from griffin_jax.checkpoints.tree import flat_abstract_params
from griffin_jax.config import TINY

ROOT = Path(__file__).parents[2]
STATUS = Path("/proc/self/status")
# 200 MB in bfloat16, of leaves of 4 MB at most but for the embedding's 8.
CONFIG = TINY.replace(
    width=512,
    mlp_width=2048,
    num_heads=4,
    head_size=128,
    recurrence_width=512,
    num_layers=24,
    vocab_size=8192,
)
# The first folder, of the same leaves but fewer of them, has everything compiled. `ru_maxrss` is no
# measure: it begins with what the process had that this one was started from.
SCRIPT = """
import re, sys
import jax, griffin_jax

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

first, second, *packing = sys.argv[1:]
packing = griffin_jax.QuantizationConfig(bnb_4bit_quant_type=packing[0]) if packing else None
load = lambda folder: griffin_jax.load(folder, dtype="bfloat16", quantization=packing).params
kept = jax.block_until_ready(load(first))
before = peak()
params = jax.block_until_ready(load(second))
print(peak() - before, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


def random_leaves(config):
    random = np.random.default_rng(0)
    for path, struct in flat_abstract_params(config).items():
        yield path, random.standard_normal(struct.shape, np.float32).astype("bfloat16")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for layers in (3, CONFIG.num_layers):
        config = CONFIG.replace(num_layers=layers)
        save_leaves(folder / str(layers), config, random_leaves(config))
    return [str(folder / "3"), str(folder / str(CONFIG.num_layers))]


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.is_file(), reason="only Linux tells a process's own peak")
@pytest.mark.parametrize(("packing", "megabytes"), [([], 200), (["nf4"], 66)])
def test_loading_holds_no_second_copy_of_the_weights(folders, packing, megabytes):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *folders, *packing],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    growth, weights = map(int, done.stdout.split())
    assert weights / 1e6 == pytest.approx(megabytes, rel=0.02)
    assert 0.9 * weights < growth < 1.5 * weights
