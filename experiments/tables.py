"""Makes tables and plots of the results of other commands.

  python -m experiments.tables --results=runs/evaluation --output=runs/tables

Reads the JSON files of experiments.evaluate, experiments.benchmark and
experiments.benchmark_forking, or a folder of them, and writes the model card's tables with what was
measured beside what was published, in Markdown and as plots.
"""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

from absl import flags

from experiments import command, config_files, outputs

_RUNS = "runs/evaluation"
_RECORDED = config_files.ROOT / "docs/evaluation/results"
_RESULTS = flags.DEFINE_list(
    "results", None, f"Files or folders, with commas; {_RUNS}, or what comes with the project."
)
_OUTPUT = flags.DEFINE_string("output", "runs/tables", "Folder for tables and plots.")

# Who writes what a file calls its "kind".
REPORTS = {
    "evaluation": "griffin_jax.evaluation.report",
    "forking": "griffin_jax.benchmarks.forking_report",
    **dict.fromkeys(
        ("decode", "generation", "latency", "throughput", "engine", "kernels", "training"),
        "griffin_jax.benchmarks.report",
    ),
}


def main() -> None:
    kinds: dict[str, list[tuple[str, dict]]] = {}
    results = _RESULTS.value
    if not results:
        results = [folder for folder in (_RUNS, str(_RECORDED)) if Path(folder).is_dir()][:1]
        if not results:
            raise FileNotFoundError(f"there is no {_RUNS} here; give --results=FILE or a folder")
        print(f"[no --results; tables of {results[0]}]", file=sys.stderr)
    for path in find_files(results):
        content = read(path)
        kinds.setdefault(content["kind"], []).append((str(path), content))
    folder = outputs.folder(_OUTPUT)
    for kind, documents in kinds.items():
        report = importlib.import_module(REPORTS[kind])
        beside = {"others": [found for _, found in kinds.get("throughput", ())]}
        beside = beside if kind == "engine" else {}
        for written in _write(report, documents, folder, **beside):
            if written.suffix == ".md":
                print(written.read_text(encoding="utf-8"))
            print(written)


def _write(
    report: ModuleType, documents: list[tuple[str, dict]], folder: Path, **beside: list[dict]
) -> list[Path]:
    try:
        return list(report.write(documents, folder, **beside))
    except (LookupError, TypeError, AttributeError) as error:  # what a row lacks or has too much
        names = ", ".join(name for name, _ in documents)
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{names}: a row is damaged or of another version ({reason})") from error


def find_files(names: list[str]) -> list[Path]:
    """Returns the files themselves and those of folders.

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
    """Returns the content of a file of results.

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
