"""Results of benchmarks as a page: the machine, tables, plots, and what could not be measured."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from griffin_jax import provenance
from griffin_jax.benchmarks import over_devices, plots, sections
from griffin_jax.benchmarks.results import name
from griffin_jax.benchmarks.sections import is_ok
from griffin_jax.files import write_text
from griffin_jax.paths import resolve

Results = dict[str, Any]

_MEDIANS = "Times are medians without compilation, with their range over the median as spread."
_TIMES = {"engine": "Every row is one run, without compilation."}


def write(documents: Sequence[tuple[str, Results]], folder: Path) -> list[Path]:
    """Writes tables and plots of results of one kind.

    Args:
      documents: File names and what they hold, of one kind.
      folder: Where to write KIND.md and its plots; it exists.

    Returns:
      The files written.

    Raises:
      ImportError: matplotlib is not installed.
    """
    folder = resolve(folder, "folder")
    kind = documents[0][1]["kind"]
    parts, pictures = [], []
    runs = joined([results for _, results in documents])
    runs.sort(key=_date, reverse=True)  # the newest first, others as they come
    for number, results in enumerate(runs):
        suffix = f"-{number + 1}" if len(runs) > 1 else ""
        made = plots.draw(results, folder, suffix)
        pictures += made
        shown = [f"![{path.stem.replace('-', ' ')}]({path.name})" for path in made]
        parts += [setting(results), *sections.TABLES[kind](results), *shown, failures(results)]
    if kind == "generation":
        parts = [*sections.side_by_side(runs), *parts]
    scaling = over_devices.draw(runs, folder)
    shown = [f"![{path.stem.replace('-', ' ')}]({path.name})" for path in scaling]
    parts = [*over_devices.sections(runs), *shown, *parts]
    pictures += scaling
    text = f"# {sections.TITLES[kind]}\n\n" + "\n\n".join(filter(None, parts)) + "\n"
    page = folder / f"{kind}.md"
    write_text(page, text)
    return [page, *pictures]


def joined(documents: Sequence[Results]) -> list[Results]:
    """Returns the results of one kind and one machine as those of one run, the limits of all beside the
    first's.
    """
    runs: dict[str, Results] = {}
    for results in documents:
        machine = json.dumps(results["machine"], sort_keys=True)
        run = runs.setdefault(machine, results | {"rows": [], "all_limits": [], "all_recorded": []})
        run["rows"] = run["rows"] + results["rows"]
        run["all_limits"] = [*run["all_limits"], results["limits"]]
        run["all_recorded"] = [*run["all_recorded"], results.get("recorded")]
    return list(runs.values())


def _date(run):
    return max((x["date"] for x in run["all_recorded"] if x), default="")


def setting(results: Results) -> str:
    """Returns the machine, its measured limits, and what was run on it."""
    machine = results["machine"]
    all_limits = results.get("all_limits", [results["limits"]])
    found = dict(machine["versions"])
    for row in results["rows"]:
        found |= row.get("versions", {})
    versions = ", ".join(f"{package} {version}" for package, version in found.items())
    random = any(row.get("random_weights", True) for row in results["rows"])

    def limit(field, unit, digits=0):
        found = [f"{limits[field] / unit:,.{digits}f}" for limits in all_limits]
        return " and ".join(dict.fromkeys(found))

    run = "each run" if len(all_limits) > 1 else "the same run"
    sources = [provenance.sentence(x) for x in results.get("all_recorded", [])]
    recorded = "\n\n".join(dict.fromkeys(filter(None, sources)))
    return (
        f"On {machine['device']} ({machine['processor']}, {machine['cores']} cores), Python "
        f"{machine['python']}, {versions}. Measured in {run}: copy "
        f"{limit('bytes_per_second', 1e9)} GB/s, matrix products "
        f"{limit('flops_per_second', 1e12, 1)} TFLOP/s in bfloat16 and "
        f"{limit('float32_flops_per_second', 1e12, 1)} in float32; shares are of these. "
        f"Weights are {'random' if random else 'a checkpoint'}{chr(39) + 's' if not random else ''}. "
        f"{_TIMES.get(results['kind'], _MEDIANS)}" + (f"\n\n{recorded}" if recorded else "")
    )


def failures(results: Results) -> str:
    """Returns what could not be measured, and why."""
    lines = [
        f"- {row.get('operation') or name(row)}, {_place(row)}: {row['status']}: "
        f"`{row.get('message') or row.get('error')}`"
        for row in results["rows"]
        if not is_ok(row) and row["what"] != "kernel"
    ]
    return "\n".join(["Not measured:", "", *lines]) if lines else ""


def _place(row):
    for key, text in (("batch_size", "batch {}"), ("tokens_sampled", "{} tokens sampled")):
        if row.get(key) and (key != "batch_size" or row["what"] == "throughput"):
            return text.format(row[key])
    return row["what"]
