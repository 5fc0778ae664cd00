"""The benchmark command, as a user calls it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def benchmark(tmp_path, *arguments, command="benchmark"):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{command}", *arguments],
        cwd=ROOT,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_figures_go_to_the_screen_and_to_a_file_and_kernels_to_a_folder(tmp_path):
    output = tmp_path / "docs" / "decode.json"
    done = benchmark(
        tmp_path,
        "--config=configs/bench_decode.py:tiny",
        "--config.models=('tiny:float32',)",
        "--config.prompt=0",
        "--config.long_prompt=0",
        "--config.stream=false",
        "--config.isolate=true",
        f"--output={output}",
        f"--profile={tmp_path / 'profile'}",
    )
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert "TFLOP/s in bfloat16" in first
    assert lines[0].startswith("tiny:float32@griffin_jax: at 64, batch 1: ")
    results = json.loads(output.read_text(encoding="utf-8"))
    assert [row["position"] for row in results["rows"]] == [64, 20_000]
    assert all(row["random_weights"] and "kernels" not in row for row in results["rows"])
    assert results["machine"]["platform"] == "cpu"
    assert sorted(path.name for path in output.parent.iterdir()) == ["decode.json"]
    (profile,) = (tmp_path / "profile").iterdir()
    assert "launches" in profile.read_text(encoding="utf-8")

    tables = tmp_path / "tables"
    done = benchmark(tmp_path, f"--results={output}", f"--output={tables}", command="tables")
    assert done.returncode == 0, done.stderr
    page = (tables / "decode.md").read_text(encoding="utf-8")
    assert "| tiny:float32@griffin_jax | 20,000 |" in page
    assert page in done.stdout


@pytest.mark.slow
def test_wrong_calls_end_in_one_line(tmp_path):
    for arguments, words in [
        (("--config=configs/bench_latency.py:huge",), "size 'huge'"),
        (("--config.models=('gemma-7b:int3',)",), "model 'gemma-7b:int3' must be MODEL:WEIGHTS"),
        ((), "this config measures an accelerator, and JAX finds a CPU alone"),
    ]:
        done = benchmark(tmp_path, *arguments)
        assert done.returncode == 1
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert not done.stdout
