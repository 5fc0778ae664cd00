"""The command that trains a vocabulary: Gemma's ids, the same bytes each time, clear errors."""

import itertools
import json
import lzma
import subprocess
import sys

import pytest

from griffin_jax.tokenizer import load_tokenizer
from tests.cases import rest_slow

WORDS = ["".join(letters) for letters in itertools.product("bcdfgklp", "aeiou", "lmnrst", "aeiou")]
TEXT = "\n".join(" ".join(WORDS[i::7] + WORDS[i::5]) for i in range(7))


def train(*flags):
    command = [sys.executable, "-m", "experiments.train_tokenizer", *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_training_twice_gives_the_same_vocabulary_with_gemmas_ids(tmp_path):
    corpus = tmp_path / "corpus.jsonl.xz"
    with lzma.open(corpus, "wt") as file:
        file.write(json.dumps({"text": TEXT}) + "\n")
    outputs = [tmp_path / str(run) / "tokenizer.model" for run in range(2)]
    for output in outputs:
        result = train(
            f"--corpus={corpus}", f"--heldout={corpus}", f"--output={output}", "--vocab_size=1024"
        )
        assert result.returncode == 0, result.stderr
        assert "bytes per token" in result.stdout
        assert list(output.parent.iterdir()) == [output]
    assert outputs[0].read_bytes() == outputs[1].read_bytes()

    tokenizer = load_tokenizer(outputs[0].parent)
    assert tokenizer.vocab_size == 1024
    pieces = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "\n", "\n\n")
    assert [tokenizer.piece_to_id(piece) for piece in pieces] == [0, 1, 2, 3, 106, 107, 108, 109]


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    rest_slow(
        2,
        [
            ("missing.txt", None, "missing.txt: there is no such file"),
            ("empty.txt", b"", "holds no text"),
            ("latin1.txt", "caf\xe9".encode("latin-1"), "latin1.txt: not UTF-8 at byte 3"),
            ("no_text.jsonl", b'{"title": "a"}\n', 'no_text.jsonl, line 1: no "text" string'),
            (
                "truncated.jsonl.xz",
                lzma.compress(b'{"text": "a"}\n' * 100)[:60],
                "truncated or damaged .xz file",
            ),
            ("short.txt", b"a few words\n", "Vocabulary size too high"),
        ],
    ),
)
def test_a_bad_corpus_is_one_line_and_writes_nothing(tmp_path, name, contents, message):
    if contents is not None:
        (tmp_path / name).write_bytes(contents)
    result = train(
        f"--corpus={tmp_path / name}", f"--output={tmp_path / 'out' / 'tokenizer.model'}"
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
