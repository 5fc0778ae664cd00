"""Plots of benchmarks: latency, throughput, size of the cache, and a roofline."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from griffin_jax.benchmarks import card, counting
from griffin_jax.benchmarks.engine import plots as engine_plots
from griffin_jax.benchmarks.results import by_batch_size, name
from griffin_jax.config import preset
from griffin_jax.files import new_file
from griffin_jax.paths import resolve
from griffin_jax.plotting import pyplot

Results = dict[str, Any]

_CACHES = ("recurrentgemma-9b", "recurrentgemma-2b", "hawk-7b", "gemma-2b", "gemma-7b")


def draw(results: Results, folder: Path, suffix: str = "") -> list[Path]:
    """Draws the plots that results of their kind have.

    Args:
      results: The results of one run.
      folder: Where to put the PNG files.
      suffix: The suffix of the files' names.

    Returns:
      The files.

    Raises:
      ImportError: matplotlib is not installed.
    """
    plt = pyplot()
    folder, paths = resolve(folder, "folder"), []
    there = {row["what"] for row in results["rows"]}
    for title, plot in _PLOTS.get(results["kind"], {}).items():
        if _SHOWN.get(title, results["kind"]) not in {*there, results["kind"]}:
            continue
        if title in _OF_LIMITS and results["limits"] is None:
            continue
        figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
        plot(axis, results)
        axis.grid(alpha=0.3, which="both")
        path = folder / f"{title}{suffix}.png"
        with new_file(path) as file:
            figure.savefig(file, dpi=110, format="png")
        plt.close(figure)
        paths.append(path)
    return paths


def latency(axis: Any, results: Results) -> None:
    """Plots seconds over tokens sampled, ours and the card's."""
    for subject, rows in _by_name(results, "latency"):
        counts = [row["tokens_sampled"] for row in rows]
        axis.plot(counts, [row["seconds"]["median"] for row in rows], "o-", label=subject)
    for (model, figures), marker in zip(card.LATENCY.items(), ("x:", "+--"), strict=True):
        points = [(count, seconds) for count, seconds in figures.items() if seconds]
        axis.plot(*zip(*points, strict=True), marker, color="gray", label=f"card: {model}")
    axis.set(xscale="log", yscale="log", xlabel="tokens sampled", ylabel="seconds, end to end")
    axis.legend(fontsize=8)


def throughput(axis: Any, results: Results) -> None:
    """Draws sampled tokens per second over the batch size."""
    for subject, rows in _by_name(results, "throughput"):
        sizes = [row["batch_size"] for row in rows]
        axis.plot(sizes, [row["tokens_per_second"] for row in rows], "o-", label=subject)
    axis.set(xscale="log", yscale="log", xlabel="batch size", ylabel="sampled tokens per second")
    axis.set_xscale("log", base=2)
    axis.legend(fontsize=8)


def share(axis: Any, results: Results) -> None:
    """Draws the share of the roofline over the batch size: of the bandwidth or of the matrix rate,
    whichever binds.
    """
    for subject, rows in _by_name(results, "throughput"):
        rows = [row for row in rows if row["bandwidth_share"] is not None]
        if not rows:
            continue
        sizes = [row["batch_size"] for row in rows]
        shares = [100 * max(row["bandwidth_share"], row["matmul_share"]) for row in rows]
        axis.plot(sizes, shares, "o-", label=subject)
    axis.set(ylim=(0, 105), xlabel="batch size", ylabel="percent of the roofline")
    axis.set_xscale("log", base=2)
    axis.legend(fontsize=8)


def cache(axis: Any, results: Results) -> None:
    """Plots the bytes of one row's state over the text's length, counted from the shapes."""
    del results
    lengths = np.unique(np.logspace(7, 20, 60, base=2).astype(int))
    for model in _CACHES:
        config = preset(model)
        axis.plot(
            lengths, [counting.cache_bytes(config, int(n)) / 1e6 for n in lengths], label=model
        )
    axis.set(yscale="log", xlabel="tokens in the text", ylabel="MB of state per row, bfloat16")
    axis.set_xscale("log", base=2)
    axis.legend(fontsize=8)


def roofline(axis: Any, results: Results) -> None:
    """Draws FLOP/s reached over FLOPs per byte, under what the device was measured to do."""
    limits = results["limits"]
    rate, bandwidth = limits["flops_per_second"], limits["bytes_per_second"]
    intensity = np.logspace(-1, 4, 200)
    roof = np.minimum(rate, intensity * bandwidth)
    axis.plot(intensity, roof / 1e12, color="black", label="measured limits")
    for label, points in _roofline_points(results).items():
        x, y = zip(*points, strict=True)
        axis.plot(x, np.array(y) / 1e12, "o", markersize=4, alpha=0.8, label=label)
    axis.set(xscale="log", yscale="log", xlabel="FLOPs per byte", ylabel="TFLOP/s")
    axis.legend(fontsize=7)


def _roofline_points(results):
    points = {}
    for row in results["rows"]:
        if row.get("status", "ok") != "ok" or not row.get("flops") or not row.get("bytes"):
            continue
        timing = row.get("seconds") if row["what"] in ("kernel", "prefill") else None
        timing = timing or row.get("seconds_per_token")
        if row["what"] == "kernel":
            label = f"{row['operation']} {row['kernel'] or ''}".strip()
        else:
            label = f"{row['what']}: {name(row)}"
        if timing and timing["median"]:
            point = (row["flops"] / row["bytes"], row["flops"] / timing["median"])
            points.setdefault(label, []).append(point)
    return points


def _by_name(results, what) -> Iterator[tuple[str, list]]:
    """Yields each model with its rows, in the order of their batch sizes."""
    rows = [r for r in results["rows"] if r["what"] == what and r.get("status", "ok") == "ok"]
    for subject in dict.fromkeys(map(name, rows)):
        yield subject, by_batch_size(row for row in rows if name(row) == subject)


# Plots of what is reached of the device's limits, which not every run measures.
_OF_LIMITS = ("roofline", "throughput-share", "throughput-roofline", "decode-roofline")
# The rows that a plot shows, where a run may have none of them.
_SHOWN = {"engine-load": "load", "engine-serving": "serving"}
_PLOTS: dict[str, dict[str, Callable[[Any, Results], None]]] = {
    "latency": {"latency": latency, "cache": cache},
    "throughput": {
        "throughput": throughput,
        "throughput-share": share,
        "throughput-roofline": roofline,
    },
    "engine": {"engine-load": engine_plots.load, "engine-serving": engine_plots.serving},
    "kernels": {"roofline": roofline},
    "decode": {"decode-roofline": roofline},
}
