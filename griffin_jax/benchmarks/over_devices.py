"""Scaling over devices: a table and a plot of the rows of one kind that differ by their mesh."""

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from griffin_jax.benchmarks.results import variant
from griffin_jax.files import new_file
from griffin_jax.markdown import table
from griffin_jax.plotting import pyplot

Row = dict[str, Any]
Results = dict[str, Any]
# A job on one kind of device: by the number of devices, the rows of each mesh.
Jobs = dict[str, dict[int, Row]]

NAME = "over-devices"


def jobs(runs: Sequence[Results]) -> Jobs:
    """Returns the jobs that were measured on several numbers of devices.

    Of several meshes of as many devices the fastest counts; of several rows of one mesh the first,
    as runs come with the newest first.
    """
    found: Jobs = collections.defaultdict(dict)
    seen = set()
    for run in runs:
        for row in run["rows"]:
            rate = row.get("tokens_per_second")
            if row.get("status", "ok") != "ok" or not rate or "devices" not in row:
                continue
            job, mesh = f"{_job(row)}, {run['machine']['device']}", str(row.get("mesh"))
            if (job, row["devices"], mesh) in seen:
                continue
            seen.add((job, row["devices"], mesh))
            best = found[job].get(row["devices"])
            if best is None or best["tokens_per_second"] < rate:
                found[job][row["devices"]] = row
    return {job: dict(sorted(rows.items())) for job, rows in found.items() if len(rows) > 1}


def sections(runs: Sequence[Results]) -> list[str]:
    """Returns tables of all jobs that several numbers of devices did, each under a line that explains it."""
    found = jobs(runs)
    if not found:
        return []
    return [*_speeds(found), *_losses(runs)]


def _speeds(found):
    counts = sorted({count for rows in found.values() for count in rows})
    head = ["over devices", *(f"{count} device{'s' if count > 1 else ''}" for count in counts)]
    lines = [
        [job, *(_cell(rows.get(count), rows.get(1)) for count in counts)]
        for job, rows in found.items()
    ]
    return [
        "Milliseconds a step over devices, with the mesh, what collectives take of it, and in percent "
        "of one device's the tokens per second and device.",
        table(head, lines),
    ]


def _losses(runs):
    """Returns a table of how training steps on every mesh follow those of one device, by its line."""
    alone: dict[tuple[str, int], Row] = {}
    shared: dict[tuple[str, int, str], Row] = {}
    for run in runs:
        for row in run["rows"]:
            if row.get("status", "ok") != "ok" or "losses" not in row:
                continue
            job = f"{_job(row)}, {run['machine']['device']}", len(row["losses"])
            if row["devices"] == 1:
                alone.setdefault(job, row)
            else:
                shared.setdefault((*job, _mesh(row)), row)
    lines = []
    for (job, steps, mesh), row in shared.items():
        if (job, steps) not in alone:
            continue
        pairs = list(zip(row["losses"], alone[job, steps]["losses"], strict=True))
        gaps = [abs(a - b) for a, b in pairs]
        ends = f"{pairs[0][1]:.4f} to {pairs[-1][1]:.4f}"
        part = max(gap / abs(b) for gap, (_, b) in zip(gaps, pairs, strict=True))
        cells = [f"{max(gaps):.1e} (step {gaps.index(max(gaps)) + 1})", f"{part:.1e}"]
        lines.append([job, str(steps), mesh, ends, *cells])
    if not lines:
        return []
    head = ["losses", "steps", "mesh", "of one device", "largest difference", "largest part of it"]
    return [
        "Losses of training steps beside those of one device, step by step.",
        table(head, lines),
    ]


def draw(runs: Sequence[Results], folder: Path) -> list[Path]:
    """Draws tokens per second over devices, a line for each job; returns the file, if there is one.

    Raises:
      ImportError: matplotlib is not installed.
    """
    found = jobs(runs)
    if not found:
        return []
    figure, axis = pyplot().subplots(figsize=(7, 4.4), layout="constrained")
    for job, rows in found.items():
        rates = [row["tokens_per_second"] for row in rows.values()]
        axis.plot(list(rows), rates, "o-", label=job)
        axis.plot(list(rows), [rates[0] * n / min(rows) for n in rows], ":", color="gray", zorder=0)
    axis.set_xscale("log", base=2)
    counts = sorted({count for rows in found.values() for count in rows})
    axis.set_xticks(counts, labels=[str(count) for count in counts])
    axis.set(yscale="log", xlabel="devices (dotted: in proportion)", ylabel="tokens per second")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=7)
    path = folder / f"{NAME}-{runs[0]['kind']}.png"
    with new_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
    pyplot().close(figure)
    return [path]


def _job(row):
    if row["what"] == "training":
        count = row["parameters"]
        parameters = f"{count / 1e9:.2f}B" if count >= 1e8 else f"{count / 1e6:.2f}M"
        dtype = f", {row['dtype']}" if "dtype" in row else ""
        size = f"{row['batch_size']} x {row['length']:,}"
        return f"training, {parameters} parameters{dtype}, {size}, {variant(row)}"
    model = f"{row['model']}:{row['weights']}:{row['dtype']}"
    tokens = row.get("position", row.get("prompt", 0))
    return f"{row['what']}, {model}, {row.get('batch_size', 1)} rows behind {tokens:,} tokens"


def _cell(row, one):
    if row is None:
        return ""
    timing = row.get("seconds_per_token") or row["seconds"]
    text = f"{1e3 * timing['median']:.3f}"
    mesh = _mesh(row)
    if "collectives" in row:
        mesh += f"; {1e3 * row['collectives']['seconds']:.3f} in collectives"
    if one is not None and row is not one:
        share = row["tokens_per_second"] / one["tokens_per_second"] / row["devices"]
        mesh += f"; {share:.0%}"
    return f"{text} ({mesh})" if mesh else text


def _mesh(row):
    return ", ".join(f"{axis} {size}" for axis, size in row.get("mesh", {}).items())
