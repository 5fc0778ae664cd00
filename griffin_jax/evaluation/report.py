"""Results of evaluations as a JSON file, and such files as the card's tables and a plot."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from griffin_jax import provenance
from griffin_jax.evaluation.suites import Row
from griffin_jax.files import new_file, write_text
from griffin_jax.markdown import table
from griffin_jax.paths import resolve
from griffin_jax.plotting import pyplot
from griffin_jax.quantization import QuantizationConfig

KIND = "evaluation"


def document(
    setting: Mapping[str, Any],
    rows: Sequence[Row],
    average: Row | None,
    outcomes: Mapping,
    reasons: Mapping,
) -> dict[str, Any]:
    """Returns what is written of an evaluation.

    Args:
      setting: Checkpoint, versions, seeds, device and the like.
      rows: What was to be measured.
      average: The card's mean of all rows, if the rows are all that it averages.
      outcomes: `run.Outcome` of each `Measure.run` that is done.
      reasons: Why others were left out.
    """
    return {
        "kind": KIND,
        **setting,
        "rows": [
            {
                "benchmark": row.benchmark,
                "card": dict(row.card),
                "protocol": row.protocol,
                "measures": [_measured(measure, outcomes, reasons) for measure in row.measures],
            }
            for row in rows
        ],
        "average": None if average is None else dict(average.card),
        "runs": [
            {
                "task": task,
                "shots": shots,
                "results": _numbers(outcome.results),
                "versions": outcome.versions,
                **outcome.figures,
            }
            for (task, shots), outcome in outcomes.items()
        ],
    }


def _measured(measure, outcomes, reasons):
    """Returns a measure with its value in the card's unit; None and a reason where there is
    none.
    """
    entry = dataclasses.asdict(measure) | {"value": None, "stderr": None, "reason": None}
    outcome = outcomes.get(measure.run)
    if outcome is None:
        return entry | {"reason": reasons.get(measure.run, "not run yet")}
    results = outcome.results.get(measure.task, {})
    if not isinstance(results.get(measure.metric), int | float):
        there = [key for key in results if "," in key and "_stderr" not in key]
        return entry | {"reason": f"no {measure.metric}, but {', '.join(there)}"}
    metric, _, name = measure.metric.partition(",")
    stderr = results.get(f"{metric}_stderr,{name}")
    if not isinstance(stderr, int | float):  # the harness writes "N/A"
        stderr = None
    return entry | {
        "value": results[measure.metric] * measure.scale,
        "stderr": None if stderr is None else stderr * measure.scale,
        "version": outcome.versions.get(measure.task),
        "questions": outcome.figures["questions"],
    }


def _numbers(results):
    return {
        name: {key: value for key, value in values.items() if isinstance(value, int | float)}
        for name, values in results.items()
    }


def write(documents: Sequence[tuple[str, dict]], folder: Path) -> list[Path]:
    """Writes the tables of some documents into `folder`, and a plot of each suite.

    Args:
      documents: File name, for errors, and content, as `document` makes it.
      folder: Where README.md-like pages and plots go; must exist.

    Returns:
      What was written.

    Raises:
      ValueError: a document lacks a field.
    """
    folder = resolve(folder, "folder")
    suites: dict[str, list[dict]] = {}
    for name, content in documents:
        try:
            suites.setdefault(content["suite"], []).append(content)
        except KeyError as error:
            raise ValueError(f"{name} has no field {error}") from None
    written = []
    for suite, contents in suites.items():
        plot(contents, folder / f"{suite}.png")
        page = folder / f"{suite}.md"
        title = f"# The model card's {suite} rows\n\n"
        image = f"\n![published and measured]({suite}.png)\n"
        write_text(page, title + markdown(contents) + image)
        written += [page, folder / f"{suite}.png"]
    return written


def markdown(documents: Sequence[Mapping]) -> str:
    """Returns the table of one suite, the evaluations side by side, and how each was made."""
    models = list(dict.fromkeys(m for d in documents for row in d["rows"] for m in row["card"]))
    names = _names(documents)
    head = ["benchmark", "task", "shots", *(f"card: {model}" for model in models)]
    for name in names:
        head += [f"{name}", "difference"]
    lines = []
    for key in _keys(documents):
        entries = [_entry(document, key) for document in documents]
        row, measure = next(entry for entry in entries if entry)
        cells = [row["benchmark"], f"`{measure['task']}` {measure['metric']}", _shots(measure)]
        cells += [_number(row["card"].get(model)) for model in models]
        for document, entry in zip(documents, entries, strict=True):
            cells += _value_and_difference(document, entry)
        lines.append([*cells, measure["differs"]])
    if any(document.get("average") for document in documents):
        lines.append(_average_line(documents, models))
    notes = [
        f"- {name}: {_describe(document)}" for name, document in zip(names, documents, strict=True)
    ]
    missing = [
        f"- {name}: {measure['task']} was not measured: {measure['reason']}"
        for name, document in zip(names, documents, strict=True)
        for row in document["rows"]
        for measure in row["measures"]
        if measure["value"] is None
    ]
    cut = [
        f"- {name}: {run['task']}: {run['prompts_cut']} of {run['requests']} prompts lost up to "
        f"{run['tokens_cut_at_most']} tokens after BOS"
        for name, document in zip(names, documents, strict=True)
        for run in document.get("runs", ())
        if run.get("prompts_cut")
    ]
    body = table([*head, "known difference"], lines, numbers=False)
    return "\n".join([body, "", *notes, *cut, *missing, ""])


def _names(documents):
    """Returns a short name for each evaluation, different ones."""
    names = [f"{Path(str(d['checkpoint'])).name}, {_precision(d)}" for d in documents]
    for i, name in enumerate(names):
        if names.count(name) > 1:
            names[i] = f"{name} ({i + 1})"
    return names


def _precision(document):
    quantization = document.get("quantization")
    if not quantization:
        return document["dtype"]
    return f"{QuantizationConfig.from_dict(quantization).name.upper()} {document['dtype']}"


def _keys(documents):
    """Returns every benchmark's measures, in the order of the suites."""
    return list(
        dict.fromkeys(
            (row["benchmark"], measure["task"], measure["metric"])
            for document in documents
            for row in document["rows"]
            for measure in row["measures"]
        )
    )


def _entry(document, key):
    for row in document["rows"]:
        for measure in row["measures"]:
            if (row["benchmark"], measure["task"], measure["metric"]) == key:
                return row, measure
    return None


def card_model(document: Mapping, card: Mapping[str, float]) -> str | None:
    """Returns the column of the card that a model belongs to: the instruction-tuned one, or the
    base.
    """
    tuned = "-it" in Path(str(document["checkpoint"])).name
    return next((m for m in card if m.endswith("-it") == tuned), next(iter(card), None))


def _value_and_difference(document, entry):
    if entry is None or entry[1]["value"] is None:
        return ["", ""]
    row, measure = entry
    value = _number(measure["value"])
    if measure["stderr"] is not None:
        value += f" ± {_number(measure['stderr'])}"
    if not measure["comparable"] or not row["card"]:
        return [value, ""]
    published = row["card"][card_model(document, row["card"])]
    return [value, f"{measure['value'] - published:+.1f}"]


def average(document: Mapping) -> float | None:
    """Returns the mean of the first measures of all rows; None while one is missing."""
    values = [row["measures"][0]["value"] for row in document["rows"]]
    if not document.get("average") or not values or None in values:
        return None
    return sum(values) / len(values)


def _average_line(documents, models):
    card = next(d["average"] for d in documents if d.get("average"))
    cells = ["Average", "mean of each row's first", ""]
    cells += [_number(card.get(model)) for model in models]
    for document in documents:
        value = average(document)
        cells += (
            ["", ""]
            if value is None
            else [
                _number(value),
                f"{value - card[card_model(document, card)]:+.1f}",
            ]
        )
    return [*cells, ""]


def _describe(document):
    parts = [
        f"{document['checkpoint']} (SHA-256 {document['fingerprint'][:12]})",
        _precision(document),
        document["device"],
        f"lm-evaluation-harness {document['lm_eval']}",
        f"data from {document['data']}",
    ]
    if document.get("chat"):
        parts.append("prompts as a user's turns")
    if document.get("limit"):
        parts.append(f"**the first {document['limit']} questions of each task only**")
    if document.get("generation_limit"):
        parts.append(
            f"**the first {document['generation_limit']} questions of each task with written "
            "answers only**"
        )
    if document.get("max_length"):
        parts.append(f"**longer prompts cut to {document['max_length']} tokens**")
    if document.get("gen_toks_cap"):
        parts.append(f"**written answers end after {document['gen_toks_cap']} tokens**")
    recorded = provenance.sentence(document.get("recorded"))
    return ", ".join(parts) + (f". {recorded}" if recorded else "")


def _shots(measure):
    return "" if measure["shots"] is None else str(measure["shots"])


def _number(value):
    return "" if value is None or math.isnan(value) else f"{value:.1f}"


def plot(documents: Sequence[Mapping], path: Path) -> None:
    """Draws published and measured figures, a group of bars for each benchmark."""
    plt = pyplot()
    rows = {row["benchmark"]: row for document in documents for row in document["rows"]}
    models = list(dict.fromkeys(model for row in rows.values() for model in row["card"]))
    series = [
        (f"card: {model}", [row["card"].get(model) for row in rows.values()], None)
        for model in models
    ]
    for name, document in zip(_names(documents), documents, strict=True):
        there = {row["benchmark"]: row["measures"][0] for row in document["rows"]}
        shown = [there.get(benchmark) for benchmark in rows]
        shown = [m if m and m["comparable"] else None for m in shown]
        values = [m and m["value"] for m in shown]
        errors = [(m and m["stderr"]) or 0 for m in shown]
        series.append((name, values, errors))
    figure, axis = plt.subplots(figsize=(max(6, 0.8 * len(rows)), 4), layout="constrained")
    width = 0.8 / len(series)
    for i, (label, values, errors) in enumerate(series):
        places = [j - 0.4 + (i + 0.5) * width for j in range(len(rows))]
        heights = [math.nan if value is None else value for value in values]
        axis.bar(places, heights, width, yerr=errors, label=label)
    axis.set_xticks(range(len(rows)), list(rows), rotation=45, ha="right")
    axis.set_ylabel("percent")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize="small")
    with new_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)
