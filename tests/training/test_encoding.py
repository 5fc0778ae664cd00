"""Documents become the same tokens in this process and in others, whatever program calls."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from griffin_jax.training import encoding
from tests.training.byte_tokenizer import ByteTokenizer

TEXTS = [f"document {i} " * (i + 1) for i in range(20)]
ROOT = Path(__file__).parents[2]


def expected():
    tokenizer = ByteTokenizer()
    return [[*tokenizer.encode(text), tokenizer.eos_id] for text in TEXTS]


def found(**options):
    return [tokens.tolist() for tokens, _ in encoding.encode_all(TEXTS, ByteTokenizer(), **options)]


def test_a_little_text_starts_no_process(monkeypatch):
    monkeypatch.setattr(encoding.subprocess, "Popen", lambda *a, **k: pytest.fail("a process"))
    assert found() == expected()


def test_other_processes_give_the_same_in_order(monkeypatch):
    monkeypatch.setattr(encoding, "available_cores", lambda: 2)
    assert found(alone=100) == expected()
    sizes = [size for _, size in encoding.encode_all(TEXTS, ByteTokenizer(), alone=100)]
    assert sizes == [len(text.encode()) for text in TEXTS]


def test_a_generator_that_is_left_leaves_no_process(monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(encoding, "available_cores", lambda: 2)
    monkeypatch.setattr(
        encoding.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    generator = encoding.encode_all(TEXTS, ByteTokenizer(), alone=0)
    next(generator)
    generator.close()
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


class Local(ByteTokenizer):
    """Cannot be pickled, as a class that a function makes cannot."""

    def __reduce__(self):
        raise TypeError("cannot pickle it")


def test_a_tokenizer_that_other_processes_cannot_have_encodes_here(monkeypatch):
    monkeypatch.setattr(encoding, "available_cores", lambda: 2)
    results = encoding.encode_all(TEXTS, Local(), alone=0)
    assert [tokens.tolist() for tokens, _ in results] == expected()


class Refusing(ByteTokenizer):
    def encode(self, text, bos=True):
        if "document 7" in text:
            raise ValueError("document 7 is refused")
        return super().encode(text, bos)


@pytest.mark.parametrize("alone", [0, 2**20])
def test_what_a_tokenizer_refuses_is_told_alike_here_and_there(monkeypatch, alone):
    monkeypatch.setattr(encoding, "available_cores", lambda: 2)
    with pytest.raises(ValueError, match="document 7 is refused"):
        list(encoding.encode_all(TEXTS, Refusing(), alone=alone))


class Dying(ByteTokenizer):
    def encode(self, text, bos=True):
        os._exit(3)


def test_a_process_that_dies_is_an_error_and_not_a_wait(monkeypatch):
    monkeypatch.setattr(encoding, "available_cores", lambda: 2)
    with pytest.raises(RuntimeError, match="a process that tokenizes has ended"):
        list(encoding.encode_all(TEXTS, Dying(), alone=0))


def test_platforms_without_affinity_count_their_cores(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert encoding.available_cores() == (os.cpu_count() or 1)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert encoding.available_cores() == 1


# A tokenizer of the script's own, no main guard, and a program that comes through standard input.
SCRIPT = """
import sys, types
package = types.ModuleType("griffin_jax")  # whose own __init__ imports all
package.__path__ = [sys.argv[1] + "/griffin_jax"]
training = types.ModuleType("griffin_jax.training")
training.__path__ = [sys.argv[1] + "/griffin_jax/training"]
sys.modules |= {"griffin_jax": package, "griffin_jax.training": training}
from griffin_jax.training import encoding
class Tokenizer:
    eos_id = 1
    def encode(self, text, bos=True):
        return [2] * bos + list(text.encode())
encoding.available_cores = lambda: 2
found = encoding.encode_all(["ab", "c"], Tokenizer(), alone=0)
print([tokens.tolist() for tokens, _ in found])
"""


@pytest.mark.parametrize("way", ["stdin", "file", "-c"])
def test_a_script_needs_no_main_guard(way, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = {"stdin": ["-"], "file": [str(tmp_path / "script.py")], "-c": ["-c", SCRIPT]}[way]
    done = subprocess.run(
        [sys.executable, *arguments, str(ROOT)],
        input=SCRIPT if way == "stdin" else "",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "[[2, 97, 98, 1], [2, 99, 1]]", done.stderr


def test_the_tokens_are_integers():
    ((tokens, size),) = encoding.encode_all(["x"], ByteTokenizer())
    assert np.issubdtype(tokens.dtype, np.integer) and size == 1
