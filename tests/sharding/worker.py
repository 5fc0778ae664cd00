"""What each of several processes does in test_processes: python -m tests.sharding.worker FLAGS

The folder in FOLDER has a model, which is loaded, sampled from and saved again; then the run in it
is trained on. The first process prints what came of it, in lines of JSON.
"""

import json
import os
from pathlib import Path

import jax
import numpy as np

import griffin_jax
from experiments import command
from griffin_jax.inference import prefill
from griffin_jax.sharding import MeshShape, make_mesh
from griffin_jax.training import train
from tests.training.small_run import make_config, make_rows

PROMPTS = [[2, 5, 7], [9] * 20, [3, 4]]


def sample(lm):
    """Tokens and scores that a number of devices must not change."""
    prefill.CHUNKS = (8,)
    drawn = lm.sample(PROMPTS, max_new_tokens=8, temperature=1.0, seed=1)
    scores = lm.score([([2, 3, 4], [5, 6])])
    return {"tokens": [s.tokens for s in drawn], "score": scores[0][0]}


def config(mesh=None):
    return make_config(
        mesh=mesh or MeshShape(), checkpoint_every=20, eval_every=1000, log_every=1, dropout=0.0
    )


def main():
    folder, processes = Path(os.environ["FOLDER"]), jax.process_count()
    lm = griffin_jax.load(folder / "model", mesh=make_mesh(data=-1, model=2), dtype="float32")
    weight = lm.params["blocks_0"]["mlp_block"]["up_proj"]["weight"]
    facts = sample(lm) | {"processes": processes, "whole": weight.is_fully_addressable}
    for form in ("orbax", "huggingface"):
        griffin_jax.save(lm, folder / f"{form}-{processes}", format=form)
    print(json.dumps(facts), flush=True)
    # Rows are cut over half of the processes, or all of them; parameters over two.
    result = train(config(MeshShape(fsdp=2, data=-1)), folder / "run", make_rows(), make_rows())
    print(json.dumps({"step": result.step, "loss": result.heldout_loss}), flush=True)
    assert np.isfinite(result.heldout_loss)


if __name__ == "__main__":
    command.run(main)
