"""The command compile_tpu: its table without compiling anew, and what it says of bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = {"topology": "v5e:1x1", "weights": "nf4", "job": "decode", "batch_size": 4}


def call(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.compile_tpu", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_sweep_keeps_the_rows_that_are_there_and_writes_tables_and_plot(tmp_path):
    pytest.importorskip("matplotlib")
    config = tmp_path / "config.py"
    config.write_text(
        "from configs import compile_tpu\n\n\n"
        "def get_config():\n"
        "    config = compile_tpu.get_config()\n"
        f"    config.rows = ({ROW!r},)\n"
        "    return config\n"
    )
    result = ROW | {
        "model": "recurrentgemma-9b",
        "tokens": 2048,
        "mesh": {"data": 1, "fsdp": 1, "model": 1, "sequence": 1},
        "fits": True,
        "memory": {"arguments": 2**32, "temporaries": 2**22, "outputs": 0, "peak": 2**32},
        "collectives": {"all-reduce": {"count": 77, "bytes": 100}},
        "compile_s": 12.4,
        "roofline": {"seconds": 0.008, "tokens_per_second_per_chip": 500.0},
        "estimate": {"seconds": 0.01538},
    }
    output = tmp_path / "tpu"
    output.mkdir()
    (output / "compiled.json").write_text(json.dumps([{"row": ROW, "result": result}]))
    done = call(f"--config={config}", "--sweep", f"--output={output}")
    assert done.returncode == 0, done.stderr
    files = sorted(path.name for path in output.iterdir())
    assert files == ["README.md", "compiled.json", "scaling.json", "scaling.png"]
    page = (output / "README.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith("| 9B nf4 decode, 4 rows"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:] == [
        *("1x1", "", "yes", "4.00 GiB", "4.0 MiB", "4.00 GiB", "77 all-reduce"),
        *("12", "8.00", "15.38", "500"),
    ]
    chips = [point["chips"] for point in json.loads((output / "scaling.json").read_text())]
    assert min(chips) == 1 and max(chips) == 256
    assert "{" not in page


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--config.topology=v5e:9x9", "error: no topology 'v5e:9x9'; there are v5e:1x1, "),
        ("--config.mesh.model=2", "error: there are 1 devices, mesh model=2 has 2: "),
        (
            "--config.job=serve",
            "error: config.job must be one of decode, prefill, train, lora, got 'serve'",
        ),
    ],
)
def test_bad_input_is_one_line(argument, message):
    done = call(argument)
    assert done.returncode == 1
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
