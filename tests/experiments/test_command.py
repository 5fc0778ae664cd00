"""What all commands say about the machine."""

import importlib.metadata
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from experiments import command


@pytest.mark.parametrize(
    ("gpu", "platforms", "plugins", "told"),
    [
        (True, "", [], True),
        (True, "cuda", [], True),
        (True, "", ["xla_cuda13"], False),
        (True, "cpu", [], False),
        (False, "", [], False),
    ],
)
def test_a_gpu_without_its_plugin_is_one_line(tmp_path, monkeypatch, gpu, platforms, plugins, told):
    path = tmp_path / "nvidia0"
    if gpu:
        path.touch()
    entries = [importlib.metadata.EntryPoint(name, "x", "jax_plugins") for name in plugins]
    monkeypatch.setattr(command, "_NVIDIA", (path,))
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(command.importlib.metadata, "entry_points", lambda group: entries)
    hint = command.missing_plugin()
    assert (hint is not None) == told
    if told:
        assert 'pip install -U "jax[cuda13]"' in hint
        assert "\n" not in hint


@pytest.mark.parametrize(
    ("platform", "told"),
    [
        ("cuda", "error: JAX_PLATFORMS=cuda, and there is no NVIDIA GPU here"),
        ("nonsense", "error: Unable to initialize backend 'nonsense'"),
    ],
)
def test_a_platform_that_is_not_there_is_one_line(platform, told):
    if platform == "cuda" and any(map(Path.exists, command._SEEN_BY_JAX)):
        pytest.skip("there is a GPU here")
    run = subprocess.run(
        [sys.executable, "-m", "experiments.sample", "--prompt=Hi", "--config.max_new_tokens=1"],
        env=os.environ | {"JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    # Above it there may be a hint at a plug-in.
    assert run.stderr.splitlines()[-1].startswith(told)
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("name", "arguments", "function", "error", "hints", "others"),
    [
        (
            "sample",
            [],
            "load_model",
            "jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory: 9 bytes.\\nBuffers:')",
            ["9 bytes", "a smaller --config.batch_size", "experiments.pack"],
            ["remat", "Buffers"],
        ),
        (
            "train",
            [
                "--config=configs/train_griffin_1b.py",
                "--config.tokenizer=griffin_jax/assets/griffin-tiny",
            ],
            "load_tokenizer",
            "MemoryError()",
            ["MemoryError", "more --config.microbatches, --config.remat=block", "--config.seq_len"],
            ["experiments.pack", "max_new_tokens", "dtype"],
        ),
    ],
)
def test_memory_that_runs_out_is_one_line(name, arguments, function, error, hints, others):
    script = f"""
import jax
from experiments import command, {name}

def fails(*args, **kwargs):
    raise {error}

{name}.{function} = fails
command.run({name}.main)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: memory does not suffice (")
    assert not [hint for hint in hints if hint not in line]
    assert not [hint for hint in others if hint in line]


def test_a_model_that_reads_no_text_is_told_before_any_is_given(monkeypatch):
    import griffin_jax

    for tokenizer in (None, "a tokenizer"):
        lm = types.SimpleNamespace(tokenizer=tokenizer)
        monkeypatch.setattr(griffin_jax, "load", lambda model, **options: lm)  # noqa: B023
        if tokenizer is None:
            with pytest.raises(ValueError, match="bare has no tokenizer; put its"):
                command.load_model("bare", dtype="float32")
        else:
            assert command.load_model("bare") is lm
