"""Measures the models, and their peers, on this machine.

  python -m experiments.benchmark --config=configs/bench_decode.py --output=docs/benchmarks/decode.json

The config says what is measured: configs/bench_latency.py and bench_throughput.py are the model card's
tables, bench_decode.py takes decoding apart, bench_kernels.py its operations, bench_training.py is
training, bench_cpu.py stands beside the peers on a CPU, bench_engine.py puts the engine to work. Each has a :tiny variant that takes seconds on
a CPU, such as --config=configs/bench_latency.py:tiny.

A line per figure goes to standard output as it comes. --output writes all figures as JSON with the
machine described; `experiments.tables` makes tables and plots of it. --profile=FOLDER also writes the
time per kernel of a decoding burst.
"""

import json
import os
import re
import sys
from typing import Any

from absl import flags

from experiments import command, outputs

_CONFIG = command.define_config("benchmark", "bench_decode.py")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")
_PROFILE = flags.DEFINE_string("profile", None, "Folder for the time per kernel; decode only.")


def main() -> None:
    # Most of the device, so that its memory and not a default bounds the batch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    from griffin_jax import provenance
    from griffin_jax.benchmarks import results, run

    config = json.loads(_CONFIG.value.to_json_best_effort())
    config["profile"] = _PROFILE.value is not None
    config["verbosity"] = flags.FLAGS.verbosity
    output = outputs.file(_OUTPUT)
    outputs.folder(_PROFILE)
    recorded = provenance.record("benchmark", sys.argv[1:])

    def save(found):
        results.write(output, found | {"recorded": recorded})

    given = {} if output is None else {"save": save}
    run.measure(config, begin=show_machine, report=show, **given)


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
    from griffin_jax.files import write_text

    print(results.line(row), flush=True)
    if kernels := row.pop("kernels", None):
        folder = outputs.folder(_PROFILE)
        times = [kernel_profile.KernelTime(**kernel) for kernel in kernels]
        text = kernel_profile.format_profile(times, per=row["burst"])
        file = folder / (re.sub("[^A-Za-z0-9.-]", "_", results.name(row)) + ".txt")
        write_text(file, text + "\n")
        print(text, flush=True)


if __name__ == "__main__":
    command.run(main)
