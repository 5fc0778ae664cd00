"""Plots of the engine's workloads."""

from typing import Any

from griffin_jax.benchmarks.engine.tables import STATIC, WAITS, model_of, whole


def load(axis: Any, results: dict[str, Any]) -> None:
    """Plots latencies over the requests that are on their way at once."""
    rows = [row for row in results["rows"] if row["what"] == "load"]
    counts = [row["concurrent"] for row in rows]
    for key, label in WAITS.items():
        (line,) = axis.plot(counts, [1e3 * row[key]["median"] for row in rows], "o-", label=label)
        late = [1e3 * row[key]["late"] for row in rows]
        axis.plot(counts, late, "x:", color=line.get_color(), label=f"{label}, 99th percentile")
    axis.set(xlabel="requests at once", ylabel="ms", yscale="log")
    axis.set_xscale("log", base=2)
    axis.legend(fontsize=8)


def serving(axis: Any, results: dict[str, Any]) -> None:
    """Draws output tokens per second over the number of clients, of servers and of their engines."""
    rows = [row for row in results["rows"] if row["what"] == "serving"]
    for model in dict.fromkeys(map(model_of, rows)):
        own = sorted((r for r in rows if model_of(r) == model), key=lambda r: r["clients"])
        counts = [row["clients"] for row in own]
        speeds = [row["tokens_per_second"] for row in own]
        (line,) = axis.plot(counts, speeds, "o-", label=f"{model}, server")
        alone = [row["engine_tokens_per_second"] for row in own]
        axis.plot(counts, alone, "x:", color=line.get_color(), label=f"{model}, engine alone")
    peers = [row for row in results["rows"] if row["what"] == STATIC]
    for model in dict.fromkeys(map(model_of, peers)):
        own = [row for row in peers if model_of(row) == model]
        sizes, speeds = [row["batch_size"] for row in own], [whole(row) for row in own]
        axis.plot(sizes, speeds, "s--", label=f"{model}, static batches")
    axis.set(xlabel="clients at once", ylabel="output tokens per second", yscale="log")
    axis.set_xscale("log", base=2)
    axis.legend(fontsize=8)
