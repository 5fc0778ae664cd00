"""Records what transformers and recurrentgemma answer, for tests that need neither.

    python -m tests.goldens.record

writes anew every folder transformers_* (a checkpoint as transformers saves it, and expected.npz)
and every recurrentgemma_*.npz (tree, config, inputs, logits) beside this file. Needs the [parity]
extra. Another version of PyTorch or NumPy may draw other weights; the tests do not mind.
"""

import json
import shutil
from pathlib import Path

import flax.traverse_util
import numpy as np

from tests.parity import recurrentgemma_oracle, transformers_oracle
from tests.parity.cases import CONFIGS, TIME, packed_positions
from tests.tiny import params_of, random_tokens

FOLDER = Path(__file__).parent


def record_transformers(seed: int, recurrence_width: int):
    """Right-padded logits of three rows, and 64 greedy tokens after the first four of row 0."""
    folder = FOLDER / f"transformers_{recurrence_width}"
    shutil.rmtree(folder, ignore_errors=True)
    model = transformers_oracle.write_folder(folder, seed=seed, recurrence_width=recurrence_width)
    _record_answers(folder, model, seed)


def record_gemma(seed: int, kv_heads: int):
    """The same of Gemma."""
    folder = FOLDER / f"transformers_gemma_{kv_heads}"
    shutil.rmtree(folder, ignore_errors=True)
    model = transformers_oracle.write_gemma_folder(folder, seed=seed, kv_heads=kv_heads)
    _record_answers(folder, model, seed)


def _record_answers(folder, model, seed):
    lengths = np.array([24, 13, 4], np.int32)
    tokens = np.random.default_rng(seed).integers(0, 128, (3, 24)).astype(np.int32)
    np.savez_compressed(
        folder / "expected.npz",
        tokens=tokens,
        lengths=lengths,
        logits=transformers_oracle.right_padded_logits(model, tokens, lengths),
        continuation=transformers_oracle.greedy(model, tokens[0, :4], 64),
    )


def record_recurrentgemma(name: str, seed: int, prompt: int):
    """Prefill of three rows of packed documents, and decoding of one document after `prompt`."""
    config = CONFIGS[name]
    tree = recurrentgemma_oracle.tree_of(params_of(config, seed), config)
    tokens, positions = random_tokens(config, (3, TIME), seed), packed_positions()
    prefill, _ = recurrentgemma_oracle.prefill(config, tree, tokens, positions)
    text, places = tokens[1:2], np.arange(TIME)[None]
    _, cache = recurrentgemma_oracle.prefill(config, tree, text[:, :prompt], places[:, :prompt])
    decoded = recurrentgemma_oracle.decode(
        config, tree, text[:, prompt:], places[:, prompt:], cache
    )
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    np.savez_compressed(
        FOLDER / f"recurrentgemma_{name.replace(' ', '_')}_{seed}.npz",
        config=json.dumps(config.to_dict()),
        tokens=tokens,
        positions=positions.astype(np.int32),
        prefill=prefill,
        prompt=prompt,
        decoded=decoded,
        **{f"tree/{key}": np.asarray(leaf) for key, leaf in flat.items()},
    )


if __name__ == "__main__":
    record_transformers(seed=0, recurrence_width=32)
    record_transformers(seed=2, recurrence_width=48)
    record_gemma(seed=0, kv_heads=1)
    record_gemma(seed=1, kv_heads=4)
    record_recurrentgemma("recurrence wider", seed=0, prompt=5)
    record_recurrentgemma("recurrence wider", seed=1, prompt=17)
    record_recurrentgemma("recurrence narrower", seed=0, prompt=1)
