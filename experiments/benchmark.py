"""Measures the models, and their peers, on this machine.

  python -m experiments.benchmark --config=configs/bench_decode.py --output=docs/benchmarks/decode.json

The config says what is measured: configs/bench_latency.py and bench_throughput.py are the model card's
tables, bench_decode.py takes decoding apart, bench_kernels.py its operations, bench_training.py is
training, bench_cpu.py stands beside the peers on a CPU. Each has a :tiny variant that takes seconds on
a CPU, such as --config=configs/bench_latency.py:tiny.

A line per figure goes to standard output as it comes. --output writes all figures as JSON with the
machine described; `experiments.tables` makes tables and plots of it. --profile=FOLDER also writes the
time per kernel of a decoding burst.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from absl import flags

from experiments import command

_CONFIG = command.define_config("bench_decode.py")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")
_PROFILE = flags.DEFINE_string("profile", None, "Folder for the time per kernel; decode only.")


def main() -> None:
    # Most of the device, so that its memory and not a default bounds the batch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    from griffin_jax.benchmarks import results, run

    config = json.loads(_CONFIG.value.to_json_best_effort())
    config["profile"] = _PROFILE.value is not None
    config["verbosity"] = flags.FLAGS.verbosity
    save = (lambda found: results.write(Path(_OUTPUT.value), found)) if _OUTPUT.value else None
    run.measure(config, begin=show_machine, report=show, **({"save": save} if save else {}))


def show_machine(found: dict[str, Any]) -> None:
    machine, limits = found["machine"], found["limits"]
    print(
        f"{machine['device']}, {machine['processor']}, {machine['cores']} cores; "
        f"copy {limits['bytes_per_second'] / 1e9:,.0f} GB/s, products "
        f"{limits['flops_per_second'] / 1e12:,.2f} TFLOP/s in bfloat16, "
        f"{limits['float32_flops_per_second'] / 1e12:,.2f} in float32",
        flush=True,
    )


def show(row: dict[str, Any]) -> None:
    from griffin_jax.benchmarks import kernel_profile, results

    print(results.line(row), flush=True)
    if kernels := row.pop("kernels", None):
        folder = Path(_PROFILE.value)
        folder.mkdir(parents=True, exist_ok=True)
        times = [kernel_profile.KernelTime(**kernel) for kernel in kernels]
        text = kernel_profile.format_profile(times, per=row["burst"])
        file = folder / (re.sub("[^A-Za-z0-9.-]", "_", results.name(row)) + ".txt")
        file.write_text(text + "\n", encoding="utf-8")
        print(text, flush=True)


if __name__ == "__main__":
    command.run(main)
