"""A study's results as JSON, a page of Markdown and plots."""

import collections
import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from griffin_jax import markdown
from griffin_jax.files import new_file, write_text
from griffin_jax.plotting import pyplot
from griffin_jax.studies import claims

# What an accuracy is of.
_COUNTED = {"rows": "rows without a wrong answer", "tokens": "answers"}
Results = Sequence[Mapping[str, Any]]


def chosen(results: Results) -> dict[tuple[str, str], Results]:
    """Returns the runs of each model and variant, at the learning rate of the lowest held-out loss.

    Variants come in the order of the numbers in their names. Of rates with fewer seeds than others,
    which are not done yet, none is chosen.
    """
    found: dict[tuple[str, str], Results] = {}
    groups = _grouped(results, "model", "variant")
    for key, rates in sorted(groups.items(), key=lambda group: _in_order(group[0][1])):
        by_rate = _grouped(rates, "learning_rate")
        most = max(map(_extent, by_rate.values()))
        complete = [runs for runs in by_rate.values() if _extent(runs) == most]
        found[key] = min(complete, key=lambda runs: np.mean([_loss(x) for x in _ended(runs)]))
    return found


def _done(runs):
    return [run for run in runs if "stopped" not in run]


def _ended(runs):
    """Returns the runs that are done, or all where none is: means are of as many steps."""
    return _done(runs) or runs


def _extent(runs):
    return len(_done(runs)), len(runs)


def _in_order(name):
    """Returns a key to sort names by, in which numbers are numbers."""
    return [
        (0, int(part.replace(",", "")), "") if part[0].isdigit() else (1, 0, part)
        for part in re.findall(r"\d[\d,]*|\D+", name)
    ]


def _what_differs(names):
    """Names of tests without the changes that all of them have."""
    changes = [name.split(", ") for name in names]
    common = set(changes[0]).intersection(*changes) if len(names) > 1 else set()
    return [", ".join(x for x in parts if x not in common) for parts in changes]


def _loss(run):
    """Returns the held-out loss; without end where training came to no number."""
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


def lookup(study: Any, results: Results) -> claims.Lookup:
    """Returns what finds quantities of the chosen runs, means over seeds, for `claims.judge`.

    Means are of the runs that are done, whatever became of other seeds. A quantity's name is what it
    is, the model, the variant where there are several, and:
      accuracy: a test's name; the share that is right, of a model that has learned the task.
      loss: nothing; the held-out loss. "loss of" has a test's name.
      loss over: another model of the same variant; the held-out loss as a multiple of its.
      loss at step: a step; the held-out loss there, also of runs that were stopped later.
      loss at: a position; the loss at tokens so far into a document, by the first test.
      steps to learn: nothing; the median over seeds, if most learned it.
      exponent: nothing, and no variant; that of the power law over the parameters of all variants.
    """
    groups = {key: _ended(runs) for key, runs in chosen(results).items()}
    variants = {variant for _, variant in groups}

    def find(what, model, *rest):
        if what == "exponent":
            sizes = [runs for (name, _), runs in groups.items() if name == model and _done(runs)]
            law = _law(groups, model) if len(sizes) == len(study.variants) else None
            return law[0] if law else None
        variant = rest[0] if rest and rest[0] in variants else ""
        rest = rest[1:] if variant else rest
        runs = groups.get((model, variant), [])
        if not runs or any(run["heldout_loss"] is None for run in runs):
            return None
        if what == "steps to learn":
            return _steps(study, runs)
        if what != "loss at step" and any("stopped" in run for run in runs):
            return None
        if what == "loss at step":
            return float(np.mean([dict(run["curve"]).get(rest[0], np.nan) for run in runs]))
        if what == "loss":
            return float(np.mean([run["heldout_loss"] for run in runs]))
        if what == "loss over":
            other = find("loss", rest[0], variant)
            return other and float(np.mean([run["heldout_loss"] for run in runs])) / other
        if what == "loss at":
            return float(np.mean([_loss_at(run, *rest) for run in runs]))
        name = {"accuracy": study.counted, "loss of": "loss"}[what]
        return float(np.mean([run["tests"][rest[0]][name] for run in runs]))

    def finite(*quantity):
        value = find(*quantity)
        return value if value is not None and np.isfinite(value) else None

    return finite


def ended(study: Any, results: Results) -> claims.Ended:
    """Returns what says whether all runs of a quantity are done, for `claims.judge`.

    "loss at step" is also of runs that were stopped later, so these count as done.
    """
    planned = collections.Counter((run.name, run.variant) for run in study.runs())
    done = collections.Counter((run["model"], run["variant"]) for run in _done(results))
    there = collections.Counter((run["model"], run["variant"]) for run in results)

    def are_done(what, model, *rest):
        of = {variant for name, variant in planned if name == model}
        if what != "exponent":  # which is of all variants
            of &= {rest[0] if rest and rest[0] in of else ""}
        names = [model, rest[-1]] if what == "loss over" else [model]
        known = there if what == "loss at step" else done
        return all(known[x, variant] >= planned[x, variant] for x in names for variant in of)

    return are_done


def _steps(study, runs):
    """Returns the median number of steps to learn a task; infinite where most runs never do."""
    steps = [solved_at(run, study.solved) for run in runs]
    return float(np.median([np.inf if x is None else x for x in steps]))


def _loss_at(run, position):
    test = next(iter(run["tests"].values()))
    place = np.searchsorted(test["edges"], position, side="right") - 1
    return test["by_position"][min(place, len(test["by_position"]) - 1)]


def _law(groups, model):
    """Returns the exponent and the factor of loss = factor * parameters ** -exponent; None of one
    size.
    """
    points = [
        (runs[0]["parameters"], np.mean([_loss(run) for run in _done(runs)]))
        for (name, _), runs in groups.items()
        if name == model and _done(runs)
    ]
    if len({size for size, _ in points}) < 2 or not np.isfinite(points).all():
        return None
    sizes, losses = np.log(np.array(points)).T
    slope, at_one = np.polyfit(sizes, losses, 1)
    return float(-slope), float(np.exp(at_one))


def table(results: Results, solved: float, counted: str = "rows") -> str:
    """Returns the results in Markdown: mean and spread over seeds of what the chosen runs reach."""
    groups = chosen(results)
    tests = list(dict.fromkeys(itertools.chain(*(x["tests"] for x in results))))
    learned = f"below {solved:g} at step" if _of_text(results) else "learned at step"
    head = ["model", "parameters", "rate", "seeds", "held-out loss", learned]
    head += _what_differs(tests) if tests else []
    rows = []
    for (model, variant), all_runs in groups.items():
        runs = _ended(all_runs)
        steps = [solved_at(run, solved) for run in runs]
        shown = sorted(f"{step:,}" if step is not None else "never" for step in steps)
        rows.append(
            [
                f"{model}, {variant}" if variant else model,
                f"{runs[0]['parameters']:,}",
                "" if runs[0]["learning_rate"] is None else f"{runs[0]['learning_rate']:g}",
                _seeds(all_runs),
                _spread([_loss(run) for run in runs], "{:.3f}"),
                " / ".join(shown) if runs[0]["curve"] else "",
                *(_spread_of_tests(runs, test, counted) for test in tests),
            ]
        )
    return markdown.table(head, rows)


def _of_text(results):
    """Says whether losses are all there is to measure."""
    return any("by_position" in x for run in results for x in run["tests"].values())


def _seeds(runs):
    """Returns how many seeds there are, and where those that are not done were stopped."""
    done, stopped = len(_done(runs)), [f"{run['stopped']:,}" for run in runs if "stopped" in run]
    words = f"{len(stopped)} stopped at {', '.join(dict.fromkeys(stopped))}" if stopped else ""
    return ", ".join(filter(None, (str(done or ""), words)))


def _spread_of_tests(runs, test, counted):
    found = [run["tests"][test] for run in runs if run["tests"]]
    if any("by_position" in x for x in found):
        return _spread([x["loss"] for x in found], "{:.3f}")
    return _spread([x[counted] for x in found], "{:.1%}")


def _spread(values, form):
    if not values:
        return ""
    low, mean, high = (form.format(x) for x in (min(values), np.mean(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def curves(axis: Any, results: Results) -> None:
    """Draws held-out losses over steps, a line a seed."""
    for color, ((model, variant), runs) in enumerate(chosen(results).items()):
        axis.set_title(variant, fontsize=9)
        for i, run in enumerate(runs):
            label = None if i else model
            axis.plot(*zip(*run["curve"], strict=True), color=f"C{color}", alpha=0.7, label=label)
    text = _of_text(results)
    each = "token" if text else "answer"
    axis.set(xlabel="steps", ylabel=f"held-out loss, nats per {each}")
    if not text:  # a task may be learned, down to nothing
        axis.set_yscale("symlog", linthresh=1e-2, subs=(2, 5))
        _plain_numbers(axis.yaxis)


def _plain_numbers(axis):
    axis.set_minor_formatter("{x:g}")
    axis.set_major_formatter("{x:g}")


def answers(axis: Any, results: Results, counted: str = "rows") -> None:
    """Draws accuracies under each test, seeds as a band."""
    names: list[str] = []
    for color, ((model, variant), runs) in enumerate(chosen(results).items()):
        runs = [run for run in runs if run["tests"]]
        if not runs:
            continue
        names = list(runs[0]["tests"])
        values = np.array([[run["tests"][name][counted] for name in names] for run in runs])
        axis.set_title(variant, fontsize=9)
        axis.plot(range(len(names)), values.mean(axis=0), "o-", color=f"C{color}", label=model)
        band = values.min(axis=0), values.max(axis=0)
        axis.fill_between(range(len(names)), *band, color=f"C{color}", alpha=0.2)
    shown = _what_differs(names) if names else []
    axis.set_xticks(range(len(names)), shown, rotation=30, ha="right", fontsize=8)
    axis.set(ylabel=_COUNTED[counted], ylim=(-0.03, 1.03))


def positions(axis: Any, results: Results) -> None:
    """Draws losses over how much of a document was read."""
    for color, ((model, variant), runs) in enumerate(chosen(results).items()):
        found = [next(iter(run["tests"].values())) for run in runs if run["tests"]]
        if not found:
            continue
        losses = np.array([x["by_position"] for x in found])
        edges = np.array(found[0]["edges"], float)
        middles = np.sqrt(np.maximum(edges[:-1], 16) * edges[1:])
        label = ", ".join(filter(None, (model, variant)))
        axis.plot(middles, losses.mean(axis=0), "o-", ms=3, color=f"C{color}", label=label)
        axis.fill_between(
            middles, losses.min(axis=0), losses.max(axis=0), color=f"C{color}", alpha=0.2
        )
    axis.set(xscale="log", xlabel="tokens of the document before", ylabel="loss, nats per token")


def laws(axis: Any, results: Results) -> None:
    """Draws held-out losses over parameters, with a power law for each model."""
    groups = chosen(results)
    for color, model in enumerate(dict.fromkeys(name for name, _ in groups)):
        runs = [x for (name, _), runs in groups.items() if name == model for x in _done(runs)]
        if not runs:
            continue
        sizes, losses = [x["parameters"] for x in runs], [_loss(x) for x in runs]
        law, label = _law(groups, model), model
        if law:
            label = f"{model}, exponent {law[0]:.3f}"
            line = np.geomspace(min(sizes), max(sizes))
            axis.plot(line, law[1] * line ** -law[0], color=f"C{color}", alpha=0.5)
        axis.plot(sizes, losses, "o", color=f"C{color}", label=label)
    axis.set(
        xscale="log", yscale="log", xlabel="parameters", ylabel="held-out loss, nats per token"
    )
    _plain_numbers(axis.yaxis)


def verdicts(study: Any, found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the verdicts on a study's claims, by its "results"."""
    results = found["results"]
    return claims.judge(study.claims, lookup(study, results), ended(study, results))


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
    command, total = found["command"], found["total"]
    results = found["results"]
    done = [run for run in results if "stopped" not in run]
    plt, paths, images = pyplot(), [], []
    plots: dict[str, Callable] = {}
    if any(run["curve"] for run in results):
        plots["curves"] = curves
    text = _of_text(results)
    if text:
        plots["positions"] = positions
    elif any(len(result["tests"]) > 1 for result in results):
        plots["answers"] = functools.partial(answers, counted=study.counted)
    if study.law:
        plots["law"] = laws
    variants = sorted({run["variant"] for run in results}, key=_in_order)
    for title, plot in plots.items():
        panels = [results]
        if title in ("curves", "answers"):  # of each variant by itself
            panels = [[run for run in results if run["variant"] == name] for name in variants]
        size = (7 if len(panels) == 1 else 4 * len(panels), 4.4)
        figure, axes = plt.subplots(
            1, len(panels), figsize=size, layout="constrained", squeeze=False, sharey=True
        )
        for axis, panel in zip(axes[0], panels, strict=True):
            plot(axis, panel)
            axis.legend(fontsize=8)
            axis.grid(alpha=0.3)
            axis.label_outer()
        paths.append(folder / f"{name}-{title}.png")
        with new_file(paths[-1]) as file:
            figure.savefig(file, dpi=110, format="png")
        plt.close(figure)
        images.append(f"![{title}]({paths[-1].name})")
    minutes = sum(result["seconds"] for result in done) / 60
    lines = [
        f"# {study.title}",
        study.paper,
        f"Differences here: {study.shorter}" if study.shorter else "",
        claims.table(found),
        table(results, study.solved, study.counted),
        "Losses are in nats per token; in brackets, the range over seeds."
        if text
        else f"Accuracies are of {_COUNTED[study.counted]}; in brackets, the range over seeds. "
        f"A task counts as learned below {study.solved:g} nats per answer.",
        *images,
        f"{len(done)} of {total} runs are done, after {minutes:.0f} minutes on {found['device']}; runs "
        f"in one program share that time. Command: `{command}`.",
    ]
    write_text(folder / f"{name}.md", "\n\n".join(filter(None, lines)) + "\n")
    return [*paths, folder / f"{name}.md"]
