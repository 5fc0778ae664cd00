"""What the library is given as a path is a home folder's, and stays where it was when it entered."""

import json
import os

import numpy as np
import pytest

import griffin_jax
from griffin_jax import checkpoints, training
from griffin_jax.benchmarks import results
from griffin_jax.checkpoints import BUNDLED, find_folder
from griffin_jax.evaluation import scorers
from griffin_jax.tokenizer import load_tokenizer
from griffin_jax.training.chat import load_chat
from griffin_jax.training.corpus import read_documents
from tests.checkpoints.tiny_model import random_params


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def tiny():
    tokenizer = load_tokenizer(find_folder(BUNDLED))
    config = griffin_jax.preset("tiny").replace(vocab_size=tokenizer.vocab_size, num_layers=1)
    return griffin_jax.LanguageModel(config, random_params(config), tokenizer)


def test_a_model_is_saved_and_loaded_wherever_the_working_folder_goes(home, monkeypatch):
    work = home.parent / "work"
    griffin_jax.save(tiny(), "ours")
    griffin_jax.save(tiny(), "~/theirs", format="huggingface")
    lm = griffin_jax.load("ours")
    other = griffin_jax.load(b"~/theirs")
    tokenizer = load_tokenizer("../home/theirs")
    monkeypatch.chdir(home)
    griffin_jax.save(lm, "again")  # which copies the tokenizer's files
    (home / "tokenizer").mkdir()
    tokenizer.save("~/tokenizer")
    assert load_tokenizer("~/tokenizer").vocab_size == other.tokenizer.vocab_size
    assert names(home) == ["again", "theirs", "tokenizer"] and names(work) == ["ours"]
    monkeypatch.chdir(work)
    with pytest.raises(FileNotFoundError, match=f"no folder {home}/nowhere"):
        checkpoints.open_checkpoint("~/nowhere")
    for path, message in [("", "is empty"), ("a\0b", "NUL"), (5, "must be a path, got 5")]:
        with pytest.raises(ValueError, match=message):
            griffin_jax.load(path)
        with pytest.raises(ValueError, match=message):
            griffin_jax.save(lm, path)
    assert names(work) == ["ours"]


def test_training_reads_and_writes_in_home_folders(home, monkeypatch):
    tokenizer = load_tokenizer(find_folder(BUNDLED))
    (home / "a.txt").write_text("It was a dark night.")
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (home / "a.NDJSON").write_text(json.dumps({"messages": chat}))
    np.save(home / "a.npy", np.array([2, 5, 6, 1], np.uint16))
    assert list(read_documents("~/a.txt")) == ["It was a dark night."]
    assert len(load_chat("~/a.NDJSON", tokenizer)) == 1
    assert len(training.load_corpus("~/a.npy", tokenizer, "cache").tokens) == 4
    corpus = training.load_corpus(["~/a.txt"], tokenizer, "~/cache")
    with training.hold_run("~/run") as run:
        monkeypatch.chdir("/")
        assert run == home / "run"
    assert corpus.tokens[0] == tokenizer.bos_id
    assert names(home) == ["a.NDJSON", "a.npy", "a.txt", "cache"]
    assert names(home.parent / "work") == []


def test_evaluation_and_benchmarks_read_and_write_in_home_folders(home, monkeypatch):
    rows = [{"generation": "one\u2028two"}, {"generation": "three"}]
    scorers.write_generations("~/texts/a.jsonl", rows)
    monkeypatch.setattr(scorers, "make_scorer", lambda name: lambda texts: [*map(len, texts)])
    assert scorers.score_file("~/texts/a.jsonl", "length")["mean"] == 6
    results.write("~/bench/a.json", {"rows": []})
    assert json.loads((home / "bench/a.json").read_text()) == {"rows": []}
    assert names(home) == ["bench", "texts"] and os.listdir() == []
