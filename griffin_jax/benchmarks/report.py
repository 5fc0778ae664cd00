"""Results of benchmarks as a page: the machine, tables, plots, and what could not be measured."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from griffin_jax import provenance
from griffin_jax.benchmarks import over_devices, plots, sections
from griffin_jax.benchmarks.engine.tables import STATIC
from griffin_jax.benchmarks.results import BY_LIMITS, has_limits, name, without_shares
from griffin_jax.benchmarks.sections import is_ok
from griffin_jax.files import write_text
from griffin_jax.paths import resolve

Results = dict[str, Any]

_MEDIANS = "Times are medians without compilation, with their range over the median as spread."
_TIMES = {"engine": "Every row is one run, without compilation."}


def write(
    documents: Sequence[tuple[str, Results]], folder: Path, others: Sequence[Results] = ()
) -> list[Path]:
    """Writes tables and plots of results of one kind.

    Args:
      documents: File names and what they hold, of one kind.
      folder: Where to write KIND.md and its plots; it exists.
      others: Results of other kinds. A server's clients are compared with a peer's static batches of
        the same prompts and tokens on the same kind of device, which throughput has.

    Returns:
      The files written.

    Raises:
      ImportError: matplotlib is not installed.
    """
    folder = resolve(folder, "folder")
    kind = documents[0][1]["kind"]
    parts, pictures = [], []
    runs = joined([results for _, results in documents])
    for run in runs:
        _add_static_batches(run, others)
    # The newest first, others as they come; last those that have nothing to be compared with.
    runs.sort(key=lambda run: (run["limits"] is not None, _date(run)), reverse=True)
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
    first's. Where a run's are not those of the device, they are left out, as are shares of them.
    """
    runs: dict[str, Results] = {}
    empty: Results = {"rows": [], "limits": None, "all_limits": [], "all_recorded": []}
    for results in documents:
        machine = json.dumps(_machine_itself(results["machine"]), sort_keys=True)
        run = runs.setdefault(machine, results | empty)
        limits = [results["limits"]] if has_limits(results) else []
        rows = results["rows"] if limits else [without_shares(row) for row in results["rows"]]
        run["rows"] = run["rows"] + rows
        run["all_limits"] = [*run["all_limits"], *limits]
        run["limits"] = run["all_limits"][0] if run["all_limits"] else None
        run["all_recorded"] = [*run["all_recorded"], results.get("recorded")]
    return list(runs.values())


def _machine_itself(machine):
    """Returns what is known of a machine but for what the environment allows a process of it."""
    return {name: value for name, value in machine.items() if name != "device_bytes"}


def _add_static_batches(run: Results, others: Sequence[Results]) -> None:
    served = {
        (row["clients"], row["prompt"], row["new_tokens"])
        for row in run["rows"]
        if row["what"] == "serving" and is_ok(row)
    }
    for other in others:
        found = [
            without_shares(row) | {"what": STATIC}
            for row in other["rows"]
            if row["what"] == "throughput"
            and is_ok(row)
            and row["stack"] != "griffin_jax"
            and other["machine"]["device"] == run["machine"]["device"]
            and (row["batch_size"], row["prompt"], row["tokens"]) in served
        ]
        if found:
            run["rows"] = [*run["rows"], *found]
            run["all_recorded"] = [*run["all_recorded"], other.get("recorded")]


def _date(run):
    return max((x["date"] for x in run["all_recorded"] if x), default="")


def setting(results: Results) -> str:
    """Returns the machine, its measured limits, and what was run on it."""
    machine = results["machine"]
    found = dict(machine["versions"])
    for row in results["rows"]:
        found |= row.get("versions", {})
    versions = ", ".join(f"{package} {version}" for package, version in found.items())
    random = any(row.get("random_weights", True) for row in results["rows"])

    sources = [provenance.sentence(x) for x in results.get("all_recorded", [])]
    recorded = "\n\n".join(dict.fromkeys(filter(None, sources)))
    return (
        f"On {machine['device']} ({machine['processor']}, {machine['cores']} cores), Python "
        f"{machine['python']}, {versions}. {_limits(results)}"
        f"Weights are {'random' if random else 'a checkpoint'}{chr(39) + 's' if not random else ''}. "
        f"{_TIMES.get(results['kind'], _MEDIANS)}" + (f"\n\n{recorded}" if recorded else "")
    )


def _limits(results):
    """Returns the sentence about the device's limits; nothing where no row tells a share of them."""
    all_limits = results["all_limits"]
    rows = results["rows"]
    if not all_limits or all(row.get(field) is None for row in rows for field in BY_LIMITS):
        return ""

    def limit(field, unit, digits=0):
        found = [f"{limits[field] / unit:,.{digits}f}" for limits in all_limits]
        return " and ".join(dict.fromkeys(found))

    runs = len(results["all_recorded"])
    run = "the same run" if runs == 1 else "each run" if len(all_limits) == runs else "some runs"
    return (
        f"Measured in {run}: copy {limit('bytes_per_second', 1e9)} GB/s, matrix products "
        f"{limit('flops_per_second', 1e12, 1)} TFLOP/s in bfloat16 and "
        f"{limit('float32_flops_per_second', 1e12, 1)} in float32; shares are of these. "
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
