"""The quality report on a tiny model: its figures against plain log-probabilities."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import griffin_jax
from griffin_jax.checkpoints import BUNDLED, find_folder, save_checkpoint
from griffin_jax.tokenizer import load_tokenizer
from tests.checkpoints.tiny_model import random_params

ROOT = Path(__file__).parents[2]
TEXTS = ("It was a dark night, and the wind was cold. Nobody spoke.", "Nothing more was said, é.")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a model and of the report that the command made of it."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("quality")
    tokenizer = load_tokenizer(find_folder(BUNDLED))
    config = griffin_jax.preset("tiny").replace(vocab_size=tokenizer.vocab_size, num_layers=1)
    params = random_params(config)
    save_checkpoint(folder / "model", config, params, tokenizer=tokenizer)
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS]
    (folder / "text.jsonl").write_text("".join(lines))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.quantization_quality"),
            *(f"--config.model={folder / 'model'}", f"--text={folder / 'text.jsonl'}"),
            *(f"--output={folder / 'report'}", "--config.chunk=16", "--config.rows=2"),
            *(
                "--config.max_bytes=40",
                "--config.packings=(('fp4', True, 256), ('int8', False, None))",
            ),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.slow
def test_figures_are_those_of_plain_log_probabilities(report):
    folder, _ = report
    lm = griffin_jax.load(folder / "model")
    base, packed, eight = json.loads((folder / "report" / "results.json").read_text())["rows"]
    texts = [text.encode()[:40].decode() for text in TEXTS]
    bits = 0.0
    for text in texts:
        tokens = lm.tokenizer.encode(text, bos=True)
        logp = np.asarray(jax.nn.log_softmax(lm.apply([tokens])[0][0]))
        bits -= logp[np.arange(len(tokens) - 1), tokens[1:]].sum() / np.log(2)
    num_bytes = sum(len(text.encode()) for text in texts)
    assert base["bits_per_byte"] == pytest.approx(bits / num_bytes, rel=1e-4)
    assert base["divergence"] == 0
    assert packed["divergence"] > 1e-4
    assert packed["bits_per_byte"] == pytest.approx(base["bits_per_byte"], rel=0.2)
    # A code book of 256 numbers beside each of these small weights.
    assert 4 < packed["bits_per_weight"] < 5.5
    assert 8 < eight["bits_per_weight"] < 9
    assert 0 < eight["divergence"] < packed["divergence"] / 20


@pytest.mark.slow
def test_the_report_is_a_table_a_plot_and_the_figures_and_names_the_machine(report):
    folder, printed = report
    files = sorted(path.name for path in (folder / "report").iterdir())
    assert files == ["README.md", "quality.png", "results.json"]
    page = (folder / "report" / "README.md").read_text()
    assert "| FP4, blocks of 256, double quantized |" in page
    assert "cores" in page
    assert str(folder) not in page
    assert "| FP4, blocks of 256, double quantized |" in printed
