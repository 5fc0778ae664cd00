"""Makes tables and plots of the results of other commands.

  python -m experiments.tables --results=runs/evaluation --output=runs/tables

Reads the JSON files of experiments.evaluate, experiments.benchmark and
experiments.benchmark_forking, or a folder of them, and writes the model card's tables with what was
measured beside what was published, in Markdown and as plots.
"""

import importlib
import json
from pathlib import Path

from absl import flags

from experiments import command, outputs

_RESULTS = flags.DEFINE_list("results", ["runs/evaluation"], "Files or folders, with commas.")
_OUTPUT = flags.DEFINE_string("output", "runs/tables", "Folder for tables and plots.")

# Who writes what a file calls its "kind".
REPORTS = {
    "evaluation": "griffin_jax.evaluation.report",
    "forking": "griffin_jax.benchmarks.forking_report",
    **dict.fromkeys(
        ("decode", "generation", "latency", "throughput", "kernels", "training"),
        "griffin_jax.benchmarks.report",
    ),
}


def main() -> None:
    kinds: dict[str, list[tuple[str, dict]]] = {}
    for path in find_files(_RESULTS.value):
        content = read(path)
        kinds.setdefault(content["kind"], []).append((str(path), content))
    folder = outputs.folder(_OUTPUT)
    for kind, documents in kinds.items():
        report = importlib.import_module(REPORTS[kind])
        for written in report.write(documents, folder):
            if written.suffix == ".md":
                print(written.read_text(encoding="utf-8"))
            print(written)


def find_files(names: list[str]) -> list[Path]:
    """The files themselves and those of folders.

    Raises:
      FileNotFoundError: a name is that of neither, or a folder holds no results.
    """
    from griffin_jax.paths import resolve

    found = []
    for path in (resolve(name, "--results") for name in names):
        if path.is_dir():
            found += (files := sorted(path.glob("*.json")))
            if not files:
                raise FileNotFoundError(f"--results={path} holds no .json file")
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"--results={path}: no such file or folder")
    return found


def read(path: Path) -> dict:
    """The content of a file of results.

    Raises:
      ValueError: it is none.
    """
    from griffin_jax.text_files import TextFile

    try:
        content = json.loads(TextFile(path).text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in REPORTS:
        raise ValueError(f"{path} holds no results: its kind is {kind!r}, not {', '.join(REPORTS)}")
    return content


if __name__ == "__main__":
    command.run(main)
