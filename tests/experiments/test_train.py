"""The train command, from nothing to a merged adapter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from griffin_jax.checkpoints import load_checkpoint
from griffin_jax.tokenizer import load_tokenizer
from griffin_jax.training.lora import load_adapter

ROOT = Path(__file__).parents[2]


def run(*flags, command="train"):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{command}", *flags],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 50)
    flags = (
        "--config=configs/train_tiny.py",
        f"--run={folder / 'run'}",
        f"--cache={folder / 'cache'}",
        f"--config.train={folder / 'text.txt'}",
        f"--config.heldout={folder / 'text.txt'}",
        "--config.model.num_layers=2",
        "--config.steps=3",
        "--config.optimizer.warmup_steps=1",
        "--config.seq_len=64",
        "--config.ema=0.5",
    )
    stopped = run(*flags, "--config.max_seconds=1e-6")
    assert stopped.returncode == 0, stopped.stderr
    done = run(*flags)
    assert done.returncode == 0, done.stderr
    return folder, stopped, done


def test_a_run_that_the_clock_stops_exports_its_model_and_goes_on(trained):
    folder, stopped, done = trained
    assert "the model after 1 step\n" in stopped.stdout
    assert "stopped at step 1 of 3; the same command goes on" in stopped.stdout
    assert "the model after 3 steps" in done.stdout and "stopped" not in done.stdout
    assert {p.name for p in (folder / "run").glob("model*")} == {"model"}


def test_text_becomes_a_model_that_loads_with_its_tokenizer(trained):
    folder, _, done = trained
    assert "steady state:" in done.stdout
    checkpoint = load_checkpoint(folder / "run" / "model")
    assert checkpoint.config.num_layers == 2
    assert load_tokenizer(folder / "run" / "model").vocab_size == checkpoint.config.vocab_size


@pytest.mark.slow
def test_the_model_is_fine_tuned_on_chats_and_merged(trained):
    folder, *_ = trained
    chat = {
        "messages": [
            {"role": "user", "content": "Hello?"},
            {"role": "assistant", "content": "Good day."},
        ]
    }
    (folder / "chats.jsonl").write_text((json.dumps(chat) + "\n") * 8)
    done = run(
        "--config=configs/finetune_lora.py",
        f"--run={folder / 'tuned'}",
        f"--config.init_from={folder / 'run' / 'model'}",
        f"--config.train={folder / 'chats.jsonl'}",
        "--config.steps=2",
        "--config.optimizer.warmup_steps=1",
        "--config.seq_len=32",
        "--config.batch_size=2",
        "--merge",
    )
    assert done.returncode == 0, done.stderr
    base = load_checkpoint(folder / "run" / "model")
    config, adapter = load_adapter(folder / "tuned" / "adapter", base.params)
    assert config.rank == 16 and adapter["blocks_0"]["mlp_block"]["up_proj"]["lora_b"].any()
    merged = load_checkpoint(folder / "tuned" / "model")
    weights = (m.params["blocks_0"]["mlp_block"]["up_proj"]["weight"] for m in (base, merged))
    assert (next(weights) != next(weights)).any()


@pytest.mark.slow
def test_bits_per_byte_of_the_model_are_measured(trained):
    folder, *_ = trained
    done = run(
        f"--model={folder / 'run' / 'model'}",
        f"--text={folder / 'text.txt'}",
        "--dtype=float32",
        "--chunk=64",
        "--edges=0,32,128",
        f"--output={folder / 'bits.json'}",
        command="bits_per_byte",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "bits.json").read_text())
    assert result == json.loads(done.stdout)
    # 13 bits a token, and three to four bytes a token.
    assert 2 < result["bits_per_byte"] < 5 and result["bytes"] == 45 * 50
    assert [part["to"] for part in result["loss_by_position"]] == [32, 128]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.train=nowhere.txt", "nowhere.txt: there is no such file"),
        ("--config.optimizer.warmup_steps=60", "warmup_steps 60 must be less than steps 60"),
        ("--config=configs/bench_training.py:huge", "config 'huge': there are 1b, 2b, tiny"),
    ],
)
def test_bad_input_ends_in_one_line(flag, message, tmp_path):
    folders = f"--run={tmp_path / 'run'}", f"--cache={tmp_path / 'cache'}"
    done = run("--config=configs/train_tiny.py", *folders, flag)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ") and message in done.stderr
    assert "Traceback" not in done.stderr
