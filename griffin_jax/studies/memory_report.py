"""Results of `memory.measure` as a page and plots."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from griffin_jax import markdown
from griffin_jax.files import new_file, write_text
from griffin_jax.plotting import pyplot


def write(name: str, found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws the effects by layer and by group of channels, and writes them as tables.

    Args:
      name: The files' name.
      found: What `measure` returns, with "command", "device", "model" and "title".
      folder: Where the files go.

    Raises:
      ImportError: matplotlib is not installed.
    """
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained", sharey=True)
    every = len(found["memory_lengths"])
    groups = [x for x in found["effects"] if len(x["layers"]) == every]
    layers = [x for x in found["effects"] if len(x["layers"]) < every and x["group"] == "all"]
    long = [x for x in found["effects"] if len(x["layers"]) < every and x["group"] != "all"]
    middles = np.sqrt(np.array(found["edges"][1:]) * np.maximum(found["edges"][:-1], 1.0))
    for axis, effects, title in zip(
        axes, (groups, layers), ("all layers, by memory length", "by layer"), strict=True
    ):
        for effect in effects:
            label = effect["group"] if effects is groups else str(effect["layers"][0])
            axis.plot(middles, effect["divergence"], "o-", label=label)
        axis.set(xscale="log", yscale="log", xlabel="tokens behind the swap", title=title)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("KL divergence of predictions, nats")
    path = folder / f"{name}.png"
    with new_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)
    sections = {"By memory length": groups, "By layer": layers, "The longest memories": long}
    lines = [f"# {found['title']}", f"![effects by distance]({path.name})"]
    for title, effects in sections.items():
        lines += [f"## {title}", table(found["edges"], effects)]
    lines.append(f"Model {found['model']}, on {found['device']}, by `{found['command']}`.")
    write_text(folder / f"{name}.md", "\n\n".join(lines) + "\n")
    return [path, folder / f"{name}.md"]


def table(edges: list[int], effects: list[Mapping[str, Any]]) -> str:
    """Returns effects in Markdown: the change of the loss and the divergence, by distance."""
    between = [f"{a:,} to {b:,}" for a, b in itertools.pairwise(edges)]
    rows = []
    for x in effects:
        figures = zip(x["loss"], x["loss_error"], x["divergence"], strict=True)
        cells = [f"{loss:+.4f} ± {error:.4f}; {kl:.1e}" for loss, error, kl in figures]
        rows.append([", ".join(map(str, x["layers"])), x["group"], x["channels"], *cells])
    return markdown.table(["layers", "channels", "how many", *between], rows)
