"""Commands without flags: those that need something say what, before any work."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.cases import rest_slow

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("command", "line"),
    rest_slow(
        4,
        [
            (["compare_training"], "no run with held-out loss there; train Griffin first, or give"),
            (["train_tokenizer"], "error: give --corpus=FILE, text to learn from"),
            (["benchmark_forking"], "error: --data_dir=benchmarks: no folder mmlu there; give one"),
            (["random_checkpoint", "--seed=-1"], "--seed=-1"),
            (["bits_per_byte", "--chunk=0"], "--chunk=0"),
            (
                ["bits_per_byte", "--edges=5,3"],
                "edges must be two positions or more, rising from 0",
            ),
            (["bits_per_byte", "--edges=a"], "--edges=a: positions are whole numbers"),
            (["bits_per_byte", "--text=/dev/null"], "holds no text|is empty"),
        ],
    ),
)
def test_what_is_missing_or_wrong_is_one_line(tmp_path, command, line):
    name, *flags = command
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *flags],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    (told,) = done.stderr.splitlines()
    assert any(words in told for words in line.split("|")) and told.startswith("error: ")
    assert not done.stdout


def test_tables_are_made_of_what_comes_with_the_project(tmp_path):
    pytest.importorskip("matplotlib")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.tables"],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "docs/evaluation/results" in done.stderr
    assert "griffin-tiny" in (tmp_path / "runs/tables/quality.md").read_text(encoding="utf-8")


def run(script):
    """Runs Python that imports one command, whose flags no other may define beside it."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_damaged_row_is_one_line():
    run("""
        from pathlib import Path
        import pytest
        from experiments import tables

        for error in (KeyError("x"), TypeError("y"), AttributeError("z"), IndexError()):
            class Report:
                @staticmethod
                def write(documents, folder, error=error):
                    raise error
            with pytest.raises(ValueError, match="a.json: a row is damaged or of another version"):
                tables._write(Report, [("a.json", {})], Path("x"))
    """)


def test_a_hub_that_does_not_answer_is_told_before_anything_is_loaded(tmp_path):
    pytest.importorskip("huggingface_hub")
    run(f"""
        import os, socket
        import pytest
        from huggingface_hub import constants
        from experiments import evaluate

        def refuse(*args, **kwargs):
            raise OSError("no route")

        socket.create_connection = refuse
        for name in list(os.environ):
            if name.lower() in ("https_proxy", "all_proxy"):
                del os.environ[name]
        constants.HF_HUB_OFFLINE = False
        with pytest.raises(ValueError, match="does not answer .*give --config.data_dir=DIR"):
            evaluate.check_hub(None)
        with pytest.raises(FileNotFoundError, match="there is no such folder"):
            evaluate.check_hub({str(tmp_path / "nowhere")!r})
        evaluate.check_hub({str(tmp_path)!r})
        constants.HF_HUB_OFFLINE = True
        evaluate.check_hub(None)
    """)


def test_packings_are_checked_before_the_model_is_loaded():
    run("""
        import pytest
        from experiments.quantization_quality import check_packings

        check_packings((("nf4", False, 64), ["fp4", True, 4096]))
        for wrong in (5, "nf4", ("nf5", False, 64), ("nf4", 0, 64), ("nf4", False, 65), ("nf4",)):
            with pytest.raises(ValueError, match="config.packings.0."):
                check_packings((wrong,))
    """)
