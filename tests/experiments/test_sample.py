"""The sample command, as a user calls it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import griffin_jax
from griffin_jax.checkpoints import BUNDLED, find_folder
from griffin_jax.tokenizer import load_tokenizer
from tests.cases import rest_slow
from tests.checkpoints.tiny_model import random_params

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny model and our own tokenizer, and a cache for compiled programs."""
    folder = tmp_path_factory.mktemp("sample")
    tokenizer = load_tokenizer(find_folder(BUNDLED))
    config = griffin_jax.preset("tiny").replace(
        vocab_size=tokenizer.vocab_size, num_layers=1, width=32, mlp_width=32
    )
    lm = griffin_jax.LanguageModel(config, random_params(config), tokenizer)
    griffin_jax.save(lm, folder / "model")
    return folder / "model"


def sample(model, *arguments, text="", **variables):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(model.parent / "cache")}
    environment |= variables
    return subprocess.run(
        [
            *(sys.executable, "-m", "experiments.sample", f"--config.model={model}"),
            *("--config.max_new_tokens=8", *arguments),
        ],
        cwd=ROOT,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
    )


def test_prompts_of_a_file_become_json_lines_and_programs_are_kept(model, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"First"\n{"prompt": "Second, \\u00e9"}\n', encoding="utf-8")
    output = tmp_path / "out.jsonl"
    done = sample(model, f"--prompts={prompts}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [line["prompt"] for line in lines] == ["First", "Second, é"]
    for line in lines:
        assert line["finish_reason"] in ("stop", "length")
        assert len(line["tokens"]) == len(line["logprobs"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "prompts.jsonl"]
    assert "2 prompts" in done.stderr
    assert list((model.parent / "cache").iterdir())


def test_an_output_whose_encoding_lacks_a_character_gets_all_texts(model, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"\\u00e9 \\ud83d\\ude42"\n', encoding="utf-8")
    done = sample(model, f"--prompts={prompts}", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompt"] == "é 🙂"


@pytest.mark.slow
def test_lines_of_the_keyboard_are_answered_until_they_end(model):
    done = sample(model, "--interactive", "--config.temperature=0", text="Good day.\n\nYes?\n")
    assert done.returncode == 0, done.stderr
    lm = griffin_jax.load(model)
    chat = lm.chat()
    for line in ("Good day.", "Yes?"):
        assert chat.send(line, max_new_tokens=8).text in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    rest_slow(
        5,
        [
            (
                ["--config.top_p=1.5"],
                "top_p must be a number above 0 and at most 1, or None, got 1.5",
            ),
            (["--config.max_new_tokens=many"], "config.max_new_tokens must be a whole number"),
            (["--config.dtype=float"], "dtype must be one of"),
            (["--prompts={file}"], "line 2: it is empty"),
            (["--prompts={binary}"], "prompts.bin: not UTF-8 at line 1, byte 0"),
            (["--prompts={file}", "--output={file}"], "is read as well, and would be overwritten"),
            (
                ["--prompts={file}", "--output={file}/none/out.jsonl"],
                "prompts.txt is a file and no folder",
            ),
            (["--prompts={file}", "--output={file}.none/out.jsonl"], "its folder does not exist"),
            (["--prompt="], "--prompt is empty"),
            (["--config.nosuch=1"], "nosuch"),
            (["--config.model=/no/such/folder"], "/no/such/folder"),
        ],
    ),
)
def test_wrong_input_ends_in_one_line_without_a_traceback(model, tmp_path, arguments, message):
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\nthree\n")
    binary = tmp_path / "prompts.bin"
    binary.write_bytes(b"\xff\xfa")
    files = {"file": file, "binary": binary}
    done = sample(model, *(argument.format(**files) for argument in arguments))
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
