"""The sample command on a folder that transformers wrote, with a SentencePiece tokenizer."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import griffin_jax
from griffin_jax.tokenizer import load_tokenizer
from tests.parity import transformers_oracle as oracle

pytestmark = pytest.mark.parity

ROOT = Path(__file__).parents[2]
TOKENIZER = Path(griffin_jax.__file__).parent / "assets" / "griffin-tiny" / "tokenizer.model"
PROMPTS = [
    "The lamp had been lit before the rain came over the hill,",
    "She said nothing",
    "“Is it far?” he asked, and the ferryman shook his head.\nThe river",
]


def test_prompts_go_on_as_transformers_says(tmp_path):
    folder, prompts = tmp_path / "model", tmp_path / "prompts.jsonl"
    model = oracle.write_folder(folder, seed=0, recurrence_width=32, vocab_size=8192)
    shutil.copy(TOKENIZER, folder)
    prompts.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.sample", f"--config.model={folder}"),
            *("--config.max_new_tokens=32", "--config.temperature=0", f"--prompts={prompts}"),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    tokenizer = load_tokenizer(folder)
    for prompt, line in zip(PROMPTS, lines, strict=True):
        expected = oracle.greedy(model, np.array(tokenizer.encode(prompt)), 32).tolist()
        assert not set(expected) & set(tokenizer.stop_ids)
        assert line["tokens"] == expected
        assert line["text"] == tokenizer.decode(expected)
        assert line["finish_reason"] == "length"
