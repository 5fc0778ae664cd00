"""Timings as pages and plots: training steps over length, and scans."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from griffin_jax import markdown
from griffin_jax.files import new_file, write_text
from griffin_jax.plotting import pyplot
from griffin_jax.studies import claims
from griffin_jax.studies.claims import judge
from griffin_jax.studies.scans import ScansStudy
from griffin_jax.studies.step_time import StepTimeStudy


def ratios(found: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """Returns each model's times by length, over that of the model compared with at its first."""
    rows = [row for row in found["rows"] if "seconds" in row]
    base = next(x for x in rows if x["model"] == found["compared_with"])["seconds"]["median"]
    models: dict[str, dict[int, float]] = {}
    for row in rows:
        models.setdefault(row["model"], {})[row["length"]] = row["seconds"]["median"] / base
    return models


def step_time_verdicts(study: StepTimeStudy, found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the verdicts on claims of a quantity's name, a model and a length: relative times."""
    times = ratios({"compared_with": study.compared_with, **found})
    return judge(study.claims, lambda _, model, length: times.get(model, {}).get(length))


def scan_verdicts(study: ScansStudy, found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the verdicts on claims of a quantity's name, an operation, a kernel, a length and a
    width: microseconds forward and backward.
    """
    times = _microseconds(found)

    def lookup(_, operation, kernel, length, width):
        return times.get((operation, True, length, width), {}).get(kernel)

    return judge(study.claims, lookup)


def _microseconds(found):
    """Returns the time of each kernel by operation, direction, length and width."""
    groups: dict[Any, dict[str, float]] = {}
    for row in found["rows"]:
        if "seconds" in row:
            key = row["operation"], row["backward"], row["length"], row["width"]
            groups.setdefault(key, {})[row["kernel"]] = row["seconds"]["median"] * 1e6
    return groups


def write_step_time(name: str, found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the page and the plot of step times.

    Args:
      name: The files' name.
      found: The study's fields, "rows" of `step_time.measure`, "device" and "command".
      folder: Where the files go.

    Raises:
      ImportError: matplotlib is not installed.
    """
    here, paper = ratios(found), found["paper_ratios"]
    figure, axis = pyplot().subplots(figsize=(7, 4.4), layout="constrained")
    for color, (model, times) in enumerate(here.items()):
        axis.plot(list(times), list(times.values()), "o-", color=f"C{color}", label=model)
        if there := paper.get(model):
            lengths = [int(x) for x in there]
            axis.plot(lengths, there.values(), "x:", color=f"C{color}", label=f"{model}, paper")
    axis.set(xscale="log", xlabel="tokens of a row", ylabel="time of a step, relative")
    axis.set_xticks([int(x) for x in found["lengths"]], [f"{x:,}" for x in found["lengths"]])
    axis.minorticks_off()
    path = _save(figure, axis, folder / f"{name}.png")
    rows = []
    for row in found["rows"]:
        model, length = row["model"], row["length"]
        if "seconds" not in row:
            rows.append([model, f"{length:,}", row.get("error", "not measured"), "", "", "", ""])
            continue
        there = paper.get(model, {}).get(str(length))
        rows.append(
            [
                model,
                f"{length:,}",
                f"{row['parameters'] / 1e6:,.0f} M",
                f"{row['seconds']['median'] * 1e3:.1f}",
                f"{row['mfu']:.1%}" if row["mfu"] else "",
                f"{here[model][length]:.2f}",
                "" if there is None else f"{there:.2f}",
            ]
        )
    head = ["model", "tokens of a row", "parameters", "ms a step", "MFU", "relative", "paper"]
    table = markdown.table(head, rows)
    return [path, _page(name, found, folder, table, path)]


def write_scans(name: str, found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the page and the plot of scans; arguments as `write_step_time`."""
    rows = [row for row in found["rows"] if "seconds" in row]
    directions = sorted({row["backward"] for row in rows})
    figure, axes = pyplot().subplots(
        1,
        len(directions),
        figsize=(5.5 * max(len(directions), 1), 4.8),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    lengths = sorted({row["length"] for row in rows})
    ways = list(dict.fromkeys((row["operation"], row["kernel"]) for row in rows))
    for axis, backward in zip(axes[0], directions, strict=True):
        for (i, way), width in itertools.product(enumerate(ways), found["widths"]):
            points = [
                (x["length"], x["seconds"]["median"] * 1e6)
                for x in rows
                if (x["operation"], x["kernel"], x["width"], x["backward"])
                == (*way, width, backward)
            ]
            if points:
                style = "-o" if width == found["widths"][0] else "--s"
                label = ", ".join(dict.fromkeys((*way, f"width {width:,}")))
                axis.plot(*zip(*points, strict=True), style, color=f"C{i}", label=label)
        axis.set(xscale="log", yscale="log", xlabel="tokens", title=_direction(backward))
        axis.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    axes[0][0].set_ylabel("microseconds")
    path = _save(figure, None, folder / f"{name}.png")
    groups = _microseconds(found)
    kernels = list(dict.fromkeys(row["kernel"] for row in rows))
    cells = [
        [
            operation,
            _direction(backward),
            f"{length:,} x {width:,}",
            *(f"{times[x]:,.0f}" if x in times else "" for x in kernels),
            min(times, key=lambda x: times[x]) if len(times) > 1 else "",
        ]
        for (operation, backward, length, width), times in groups.items()
    ]
    head = [
        "operation",
        "direction",
        "tokens x channels",
        *(f"{x}, us" for x in kernels),
        "fastest",
    ]
    return [path, _page(name, found, folder, markdown.table(head, cells), path)]


def _direction(backward):
    return "forward and backward" if backward else "forward"


def _save(figure, axis, path):
    if axis is not None:
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    with new_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
    pyplot().close(figure)
    return path


def _page(name, found, folder, table, plot):
    lines = [
        f"# {found['title']}",
        found["paper"],
        f"Differences here: {found['shorter']}" if found["shorter"] else "",
        claims.table(found),
        table,
        f"![{found['title']}]({plot.name})",
        f"On {found['device']}, by `{found['command']}`.",
    ]
    write_text(folder / f"{name}.md", "\n\n".join(filter(None, lines)) + "\n")
    return folder / f"{name}.md"
