"""A study's results as JSON, a page of Markdown and plots."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from griffin_jax import markdown
from griffin_jax.files import new_file, write_text
from griffin_jax.tracing.plots import pyplot

Results = Sequence[Mapping[str, Any]]


def chosen(results: Results) -> dict[tuple[str, str], Results]:
    """Returns the runs of each model and variant, at the learning rate of the lowest held-out loss.

    Of rates with fewer seeds than others, which are not done yet, none is chosen.
    """
    found: dict[tuple[str, str], Results] = {}
    for key, rates in _grouped(results, "model", "variant").items():
        by_rate = _grouped(rates, "learning_rate")
        most = max(map(len, by_rate.values()))
        complete = [runs for runs in by_rate.values() if len(runs) == most]
        found[key] = min(complete, key=lambda runs: np.mean([_loss(x) for x in runs]))
    return found


def _loss(run):
    """The held-out loss; without end where training came to no number."""
    return np.inf if run["heldout_loss"] is None else run["heldout_loss"]


def _grouped(results, *fields):
    groups: dict[Any, list] = {}
    for result in results:
        key = tuple(result[name] for name in fields)
        groups.setdefault(key, []).append(result)
    return groups


def solved_at(run: Mapping[str, Any], below: float) -> int | None:
    """Returns the first step at which the held-out loss is below a bound; None for never."""
    return next((int(step) for step, loss in run["curve"] if loss < below), None)


def table(results: Results, solved: float) -> str:
    """Returns the results in Markdown: mean and spread over seeds of what the chosen runs reach."""
    groups = chosen(results)
    tests = list(dict.fromkeys(itertools.chain(*(x["tests"] for x in results))))
    head = ["model", "parameters", "rate", "seeds", "held-out loss", "learned at step", *tests]
    rows = []
    for (model, variant), runs in groups.items():
        steps = [solved_at(run, solved) for run in runs]
        shown = sorted(f"{step:,}" if step is not None else "never" for step in steps)
        rows.append(
            [
                f"{model}, {variant}" if variant else model,
                f"{runs[0]['parameters']:,}",
                f"{runs[0]['learning_rate']:g}",
                len(runs),
                _spread([_loss(run) for run in runs], "{:.3f}"),
                " / ".join(shown),
                *(
                    _spread([run["tests"][test]["rows"] for run in runs if run["tests"]], "{:.1%}")
                    for test in tests
                ),
            ]
        )
    return markdown.table(head, rows)


def _spread(values, form):
    if not values:
        return ""
    low, mean, high = (form.format(x) for x in (min(values), np.mean(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def curves(axis: Any, results: Results) -> None:
    """Draws held-out losses over steps, a line a seed."""
    for color, ((model, variant), runs) in enumerate(chosen(results).items()):
        for i, run in enumerate(runs):
            label = None if i else ", ".join(filter(None, (model, variant)))
            axis.plot(*zip(*run["curve"], strict=True), color=f"C{color}", alpha=0.7, label=label)
    axis.set(xlabel="steps", ylabel="held-out loss, nats per answer")
    axis.set_yscale("symlog", linthresh=1e-2)


def answers(axis: Any, results: Results) -> None:
    """Draws the share of rows without a wrong answer under each test, seeds as a band."""
    for color, ((model, variant), runs) in enumerate(chosen(results).items()):
        names = list(runs[0]["tests"])
        values = np.array([[run["tests"][name]["rows"] for name in names] for run in runs])
        label = ", ".join(filter(None, (model, variant)))
        axis.plot(range(len(names)), values.mean(axis=0), "o-", color=f"C{color}", label=label)
        band = values.min(axis=0), values.max(axis=0)
        axis.fill_between(range(len(names)), *band, color=f"C{color}", alpha=0.2)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axis.set(ylabel="rows without a wrong answer", ylim=(-0.03, 1.03))


def write(name: str, study: Any, found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes what is known of a study.

    Args:
      name: The files' name.
      study: The `Study`.
      found: "results" of the runs that are done, one at least; "command"; and "total", how many
        runs there are in all.
      folder: Where the files go: Markdown and plots.

    Returns:
      The files.

    Raises:
      ImportError: matplotlib is not installed.
    """
    results, command, total = found["results"], found["command"], found["total"]
    plt, paths, images = pyplot(), [], []
    plots: dict[str, Callable] = {"curves": curves}
    if any(len(result["tests"]) > 1 for result in results):
        plots["answers"] = answers
    for title, plot in plots.items():
        figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
        plot(axis, results)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
        paths.append(folder / f"{name}-{title}.png")
        with new_file(paths[-1]) as file:
            figure.savefig(file, dpi=110, format="png")
        plt.close(figure)
        images.append(f"![{plot.__doc__.split('.')[0]}]({paths[-1].name})")
    devices = ", ".join(sorted({result["device"] for result in results}))
    hours = sum(result["seconds"] for result in results) / 3600
    lines = [
        f"# {study.title}",
        study.paper,
        f"Run here otherwise: {study.shorter}" if study.shorter else "",
        table(results, study.solved),
        "Accuracies are of rows without a wrong answer; in brackets, the range over seeds. "
        f"A task counts as learned below {study.solved:g} nats per answer.",
        *images,
        f"{len(results)} of {total} runs are done, in {hours:.1f} hours on {devices}, by `{command}`.",
    ]
    write_text(folder / f"{name}.md", "\n\n".join(filter(None, lines)) + "\n")
    return [*paths, folder / f"{name}.md"]
