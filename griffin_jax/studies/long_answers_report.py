"""Answers to lines of JSON from chunks and in one pass, as a page and a plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from griffin_jax import markdown
from griffin_jax.files import new_file, write_text
from griffin_jax.plotting import pyplot
from griffin_jax.studies import claims
from griffin_jax.studies.long_answers import SCORES, WAYS, LongAnswersStudy


def means(found: Mapping[str, Any]) -> dict[int, dict[tuple[str, str], float]]:
    """Returns, by the size of chunks, the mean score of all lines by way and score."""
    sizes: dict[int, list] = {}
    for row in found["rows"]:
        for one in row["sizes"]:
            sizes.setdefault(one["size"], []).append(one | {"one pass": row["one pass"]})
    return {
        size: {
            (way, score): float(np.mean([one[way][score] for one in group]))
            for way in WAYS
            for score in SCORES
        }
        for size, group in sizes.items()
    }


def verdicts(study: LongAnswersStudy, found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the verdicts on claims of one of `SCORES`, one of `WAYS` and maybe a size of chunks.

    Without a size, it is the mean over all of them. None is judged before all lines are answered.
    """
    known = means(found)
    whole = len(found["rows"]) == found["total"]

    def lookup(score, way, size=None):
        values = [x[way, score] for x_size, x in known.items() if size in (None, x_size)]
        return float(np.mean(values)) if values else None

    return claims.judge(study.claims, lookup, lambda *quantity: whole)


def write(name: str, found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the page and the plot.

    Args:
      name: The files' name.
      found: The study's fields, "rows" of `long_answers.measure`, "total" lines, "device" and "command".
      folder: Where the files go.

    Raises:
      ImportError: matplotlib is not installed.
    """
    known = means(found)
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
    for axis, score in zip(axes, SCORES, strict=True):
        for way, style in zip(WAYS, ("o-", "s--", "^:"), strict=True):
            axis.plot(list(known), [x[way, score] for x in known.values()], style, label=way)
        axis.set(xscale="log", xlabel="tokens of a chunk", title=score, ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    path = folder / f"{name}.png"
    with new_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)

    rows = found["rows"]
    tokens = [row["tokens"] for row in rows]
    cells = []
    for i, (size, values) in enumerate(known.items()):
        chunks = np.mean([row["sizes"][i]["chunks"] for row in rows])
        skipped = sum(row["sizes"][i]["skipped"] for row in rows)
        shares = [f"{values[way, score]:.1%}" for score in SCORES for way in WAYS]
        cells.append([f"{size:,}", f"{chunks:.1f}", skipped, *shares])
    ways = [f"{score}, {way}" for score in SCORES for way in WAYS]
    lines = [
        f"# {found['title']}",
        found["paper"],
        f"Differences here: {found['shorter']}" if found["shorter"] else "",
        claims.table(found),
        markdown.table(["tokens of a chunk", "chunks", "skipped", *ways], cells),
        f"Means of {len(rows)} of {found['total']} lines, whose contexts have {min(tokens):,} to "
        f"{max(tokens):,} tokens. F1 and exact match are those of SQuAD and LongBench. The chunk read is "
        f"chosen by {_CHOSEN[found['certainty']]}, among those whose answer does not say that there is "
        "none; those are skipped. The best chunk is chosen by who knows the answer: what certainty could "
        "reach at most.",
        f"![Scores over the size of chunks]({path.name})",
        f"Model {found['model']}, on {found['device']}, by `{found['command']}`.",
    ]
    write_text(folder / f"{name}.md", "\n\n".join(filter(None, lines)) + "\n")
    return [path, folder / f"{name}.md"]


_CHOSEN = {
    "entropy": "the lowest entropy of the answer's first token",
    "probability": "the highest mean log-probability of the answer's tokens",
}
