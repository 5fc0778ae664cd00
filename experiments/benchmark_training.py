"""Measures training steps: python -m experiments.benchmark_training --config=configs/bench_training.py

Tokens per second and model FLOP utilisation of AdamW steps, random weights and tokens, at several
sequence lengths with as many tokens in every batch. A row that does not fit says so. --output writes
all figures as JSON.
"""

import json
from pathlib import Path

from absl import flags

from experiments import command

_CONFIG = command.define_config("bench_training.py")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the figures.")

_HEAD = [
    "length",
    "batch",
    "document",
    "remat",
    "loss chunks",
    "microbatches",
    "ms a step",
    "spread",
]
_HEAD += ["tokens/s", "MFU", "GB", "compiled in s"]


def cells(row: dict) -> list[str]:
    """One line of the table."""
    names = ("length", "batch_size", "document", "remat", "loss_chunks", "microbatches")
    start = [f"{row[name]:,}" if name != "remat" else row[name] for name in names]
    size = f"{row['memory_bytes'] / 1e9:.1f}" if "memory_bytes" in row else ""
    compiled = f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else ""
    if "error" in row:
        return [*start, "out of memory", "", "", "", size, compiled]
    seconds = row["seconds"]
    return [
        *start,
        f"{1e3 * seconds['median']:,.1f}",
        f"{seconds['spread']:.1%}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['mfu']:.1%}" if row["mfu"] else "",
        size,
        compiled,
    ]


def main() -> None:
    from griffin_jax.benchmarks import machine, training

    rows = training.measure(_CONFIG.value, report=lambda row: print(*cells(row), flush=True))
    print(f"{rows[0].get('parameters', 0):,} parameters on {command.machine()}")
    print(command.table(_HEAD, [cells(row) for row in rows]))
    if _OUTPUT.value:
        path = Path(_OUTPUT.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        results = {"machine": machine.describe(), "rows": rows}
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


if __name__ == "__main__":
    command.run(main)
