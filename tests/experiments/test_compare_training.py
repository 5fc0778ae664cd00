"""The report on several trained models."""

import functools
import json
import shutil

import jax
import pytest
from ml_collections import ConfigDict

from griffin_jax import checkpoints
from griffin_jax.config import GriffinConfig
from griffin_jax.models import init_params
from griffin_jax.tokenizer import load_tokenizer
from griffin_jax.training import evaluate
from tests.experiments import modules
from tests.training.small_run import make_config

compare_training = modules.of_command("compare_training")
MODELS = {
    "Griffin": GriffinConfig(
        vocab_size=8192, width=16, mlp_width=16, num_layers=2, num_heads=2, attention_window=8
    ),
    "Transformer": GriffinConfig(
        vocab_size=8192,
        width=16,
        mlp_width=16,
        num_layers=1,
        num_heads=2,
        block_pattern=("attention",),
        attention_window=None,
    ),
}
TEXT = "The quick brown fox jumps over the lazy dog. " * 12


@pytest.fixture
def config(tmp_path):
    """Two finished runs and what to do with them."""
    tokenizer = load_tokenizer("griffin_jax/assets/griffin-tiny")
    for index, (name, model) in enumerate(MODELS.items()):
        folder = tmp_path / name
        params = jax.jit(functools.partial(init_params, model))(jax.random.key(index))
        checkpoints.save_checkpoint(folder / "model", model, params, tokenizer=tokenizer)
        identity = make_config(model=model, seq_len=32).identity()
        (folder / "run.json").write_text(json.dumps(identity))
        lines = [
            {"step": 10, "loss": 9.0 - index, "tokens": 1280, "tokens_per_second": 5.0},
            {"step": 10, "heldout_loss": 9.5 - index},
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (tmp_path / "text.txt").write_text(TEXT)
    values = {
        "runs": tuple(f"{name}={tmp_path / name}" for name in MODELS),
        "text": str(tmp_path / "text.txt"),
        "edges": (0, 16, 64),
        "dtype": "float32",
        "chunk": 16,
        "cache": (8, 8),
    }
    return ConfigDict(values)


def open_runs(config):
    return [compare_training.open_run(text, config) for text in config.runs]


@pytest.mark.slow
def test_the_report_holds_what_was_measured_and_needs_the_models_once(config, tmp_path):
    runs = open_runs(config)
    for run in runs:
        model = checkpoints.load_checkpoint(run.folder / "model")
        sliding = {"capacity": 8, "chunk": 8} if run.name == "Transformer" else {"chunk": 16}
        (expected,) = evaluate.bits_per_byte(
            model.config,
            model.params,
            load_tokenizer(run.folder / "model"),
            [TEXT],
            dtype="float32",
            **sliding,
        )
        assert run.evaluation["bits_per_byte"] == pytest.approx(expected, rel=1e-5)
        shutil.rmtree(run.folder / "model")

    compare_training.write_report(tmp_path / "report", open_runs(config), config)
    page = (tmp_path / "report" / "README.md").read_text()
    assert "| Griffin " in page and "Transformer, sliding cache" in page and "| 16 to 64" in page
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert results["Transformer"]["heldout_loss"] == 8.5
    assert f"{results['Griffin']['bits_per_byte']:.4f}" in page
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {
        "README.md",
        "results.json",
        "loss.png",
        "position.png",
        "griffin.jsonl",
        "transformer.jsonl",
    }


def test_a_run_that_is_not_there_is_one_line(config, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run with held-out loss there; train Hawk"):
        compare_training.open_run(f"Hawk={tmp_path / 'hawk'}", config)
    with pytest.raises(ValueError, match="run 'Hawk' must be NAME=FOLDER"):
        compare_training.open_run("Hawk", config)
