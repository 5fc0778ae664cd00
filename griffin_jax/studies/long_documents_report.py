"""Answers from chunks and in one pass, as a page and a plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from griffin_jax import markdown
from griffin_jax.files import new_file, write_text
from griffin_jax.plotting import pyplot
from griffin_jax.studies import claims
from griffin_jax.studies.long_documents import LongDocumentsStudy

WAYS = ("one pass", "chunks read", "best chunk")


def verdicts(study: LongDocumentsStudy, found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the verdicts on claims of one of `WAYS`, a model and a number of chunks."""
    groups = _groups(found)

    def lookup(way, model, chunks):
        rows = groups.get((model, chunks))
        return float(np.mean([row[way] for row in rows])) if rows else None

    return claims.judge(study.claims, lookup)


def _groups(found):
    groups: dict[tuple[str, int], list] = {}
    for row in found["rows"]:
        groups.setdefault((row["model"], row["chunks"]), []).append(row)
    return groups


def write(name: str, found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the page and the plot.

    Args:
      name: The files' name.
      found: The study's fields, "rows" of `long_documents.measure`, "seeds", "device" and "command".
      folder: Where the files go.

    Raises:
      ImportError: matplotlib is not installed.
    """
    groups = _groups(found)
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for color, model in enumerate(dict.fromkeys(model for model, _ in groups)):
        for way, style in zip(WAYS, ("o-", "s--", ":"), strict=True):
            points = [
                (rows[0]["tokens"], np.mean([row[way] for row in rows]))
                for (of, _), rows in groups.items()
                if of == model
            ]
            label = f"{model}, {way}"
            axis.plot(*zip(*points, strict=True), style, color=f"C{color}", label=label)
    axis.set(xscale="log", xlabel="tokens of the text", ylabel="right answers", ylim=(-0.03, 1.03))
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)
    path = folder / f"{name}.png"
    with new_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)

    cells = [
        [model, chunks, f"{rows[0]['tokens']:,}", *(_spread(rows, way) for way in WAYS)]
        for (model, chunks), rows in groups.items()
    ]
    head = ["model", "chunks", "tokens", *WAYS]
    lines = [
        f"# {found['title']}",
        found["paper"],
        f"Differences here: {found['shorter']}",
        claims.table(found),
        markdown.table(head, cells),
        "Shares of right answers; in "
        "brackets, the range over seeds. The best chunk is chosen by who knows the answer: what "
        "certainty could reach at most.",
        f"![Right answers over the length of the text]({path.name})",
        f"On {found['device']}, by `{found['command']}`.",
    ]
    write_text(folder / f"{name}.md", "\n\n".join(filter(None, lines)) + "\n")
    return [path, folder / f"{name}.md"]


def _spread(rows, way):
    values = [row[way] for row in rows]
    low, mean, high = (f"{x:.1%}" for x in (min(values), np.mean(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"
