"""The tables of each kind of results, the model card's figures beside ours."""

from collections.abc import Callable, Sequence
from typing import Any

from griffin_jax.benchmarks import card
from griffin_jax.benchmarks.engine import tables
from griffin_jax.benchmarks.results import by_batch_size, name, variant
from griffin_jax.markdown import table

Row = dict[str, Any]
Results = dict[str, Any]


def is_ok(row: Row) -> bool:
    """Returns whether a row was measured."""
    return row.get("status", "ok") == "ok"


def _of(results, what):
    return [row for row in results["rows"] if row["what"] == what and is_ok(row)]


def _ms(timing):
    return f"{1e3 * timing['median']:.3f}"


def _share(value):
    return "" if value is None else f"{value:.1%}"


def _bound(seconds, scale, digits):
    return "" if seconds is None else f"{scale * seconds:.{digits}f}"


def _gb(value):
    return "" if value is None else f"{value / 1e9:.2f}"


def _compiled(row):
    compiled = row.get("compile")
    return f"{compiled['seconds']:.1f}" if compiled and compiled["programs"] else ""


def _generations(results):
    rows = [
        [
            name(row),
            f"{row['first_token_seconds']['median']:.3f}",
            _share(row["prefill_matmul_share"]),
            _ms(row["seconds_per_token"]),
            _share(row["seconds_per_token"]["spread"]),
            _bound(row["floor_seconds"], 1e3, 3),
            _share(row["bandwidth_share"]),
            _gb(row["peak_bytes"]),
            _compiled(row),
        ]
        for row in _of(results, "generation")
    ]
    head = ["model", "prompt to first token, s", "of the matrix rate", "ms per token", "spread"]
    head += ["lower bound, ms", "of the bandwidth", "peak GB", "compiled in s"]
    if not rows:
        return []
    prompt = _of(results, "generation")[0]["prompt"]
    return [f"One row, a prompt of {prompt:,} tokens.", table(head, rows)]


def side_by_side(runs: Sequence[Results]) -> list[str]:
    """Returns a table with two columns for each of several runs, and a line about it."""
    if len(runs) < 2:
        return []
    titles = [f"jax {run['machine']['versions']['jax']}" for run in runs]
    if len(set(titles)) < len(runs):
        titles = [f"run {number + 1}" for number in range(len(runs))]
    cells: dict[str, dict[int, list[str]]] = {}
    for number, run in enumerate(runs):
        for row in _of(run, "generation"):
            prompt = f"{row['first_token_seconds']['median']:.3f}"
            cells.setdefault(name(row), {})[number] = [prompt, _ms(row["seconds_per_token"])]
    head = ["model", *(f"{title}: {x}" for title in titles for x in ("prompt, s", "ms a token"))]
    lines = [
        [model, *(cell for number in range(len(runs)) for cell in found.get(number, ["", ""]))]
        for model, found in cells.items()
    ]
    return ["Run beside run; each is described below.", table(head, lines)]


def _decode(results):
    sections = _generations(results)
    prefills = [
        [
            name(row),
            f"{row['prompt']:,}",
            f"{row['seconds']['median']:.4f}",
            _share(row["seconds"]["spread"]),
            f"{row['tokens_per_second']:,.0f}",
            _share(row["matmul_share"]),
        ]
        for row in _of(results, "prefill")
    ]
    if prefills:
        head = ["prefill", "prompt", "s", "spread", "tokens/s", "of the matrix rate"]
        sections.append(table(head, prefills))
    positions = [
        [
            name(row),
            f"{row['position']:,}",
            _ms(row["seconds_per_token"]),
            _share(row["seconds_per_token"]["spread"]),
            _share(row["bandwidth_share"]),
            f"{row['state_bytes']:,}",
            _gb(row["peak_bytes"]),
        ]
        for row in _of(results, "decode")
    ]
    if positions:
        head = ["decoding", "at position", "ms per token", "spread", "of the bandwidth"]
        sections.append(table([*head, "state bytes", "peak GB"], positions))
    streams = [
        [
            name(row),
            f"{row['tokens']:,}",
            str(row["bursts"]),
            str(row["burst"]),
            _ms(row["seconds_per_token"]),
            _share(row["seconds_per_token"]["spread"]),
            _ms(row["whole_seconds_per_token"]),
            _share(row["whole_seconds_per_token"]["spread"]),
            f"{row['cost']:.2%}",
        ]
        for row in _of(results, "streaming")
    ]
    if streams:
        head = ["streaming", "tokens", "bursts", "of at most", "ms per token", "spread"]
        head += ["in one dispatch", "spread", "of throughput"]
        sections.append(table(head, streams))
    long = [
        [
            name(row),
            f"{row['tokens_read']:,}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['state_bytes']:,}",
            _gb(row["peak_bytes"]),
        ]
        for row in _of(results, "long prompt")
    ]
    if long:
        head = ["one long prompt", "tokens read", "tokens/s", "state bytes", "peak GB"]
        sections.append(table(head, long))
    return sections


def _latency(results):
    """Returns the card's table, with a column for each model that was measured."""
    rows = [row for row in results["rows"] if row["what"] == "latency" and "tokens_sampled" in row]
    subjects = list(dict.fromkeys(map(name, rows)))
    cells = {(name(row), row["tokens_sampled"]): row for row in rows}
    head = ["tokens sampled", *(f"card: {model}" for model in card.LATENCY), *subjects]
    lines, details = [], []
    for count in sorted({row["tokens_sampled"] for row in rows}):
        published = [_published(figures.get(count, "")) for figures in card.LATENCY.values()]
        ours = [_seconds(cells.get((subject, count))) for subject in subjects]
        lines.append([f"{count:,}", *published, *ours])
    for subject in subjects:
        done = [row for row in rows if name(row) == subject and is_ok(row)]
        if done:
            last = done[-1]
            details.append(
                [
                    subject,
                    f"{last['first_token_seconds']['median']:.3f}",
                    _ms(done[0]["seconds_per_token"]),
                    _ms(last["seconds_per_token"]),
                    _share(last["bandwidth_share"]),
                    _share(done[0]["seconds"]["spread"]),
                    _gb(last["peak_bytes"]),
                    _compiled(last),
                ]
            )
    detail_head = ["model", "first token, s", "ms per token at first", "at last"]
    detail_head += ["of the bandwidth", "spread of the first row", "peak GB", "compiled in s"]
    method = (
        f"Seconds; the card's protocol: {card.PROTOCOL}. One long generation gives all rows of a "
        "model, and short ones repeat the first."
    )
    return [method, table(head, lines), table(detail_head, details)]


def _published(seconds):
    return "out of memory" if seconds is None else str(seconds)


def _seconds(row):
    if row is None:
        return "not asked for"
    return f"{row['seconds']['median']:.2f}" if is_ok(row) else row["status"]


def _throughput(results):
    rows = [row for row in results["rows"] if row["what"] == "throughput" and "batch_size" in row]
    models = list(dict.fromkeys(map(name, rows)))
    rows = sorted(by_batch_size(rows), key=lambda row: models.index(name(row)))
    lines = []
    for row in rows:
        if not is_ok(row):
            lines.append([name(row), str(row["batch_size"]), "", row["status"], *[""] * 6])
            continue
        read = row.get("prefill_tokens_per_second")
        lines.append(
            [
                name(row),
                str(row["batch_size"]),
                f"{row['prompt']:,}",
                f"{row['tokens_per_second']:,.0f}",
                _ms(row["seconds_per_token"]),
                _share(row["seconds_per_token"]["spread"]),
                _share(row["bandwidth_share"]),
                _share(row["matmul_share"]),
                f"{read:,.0f}" if read else "",
                _gb(row["peak_bytes"]),
            ]
        )
    best = {}
    for row in filter(is_ok, rows):
        if row["tokens_per_second"] > best.get(name(row), row)["tokens_per_second"] or (
            name(row) not in best
        ):
            best[name(row)] = row
    most = table(
        ["model", "most sampled tokens/s", "at batch"],
        [
            [subject, f"{row['tokens_per_second']:,.0f}", str(row["batch_size"])]
            for subject, row in best.items()
        ],
    )
    head = ["model", "batch", "prompt", "sampled tokens/s", "ms per step", "spread"]
    head += ["of the bandwidth", "of the matrix rate", "prefill tokens/s", "peak GB"]
    return [most, table(head, lines)]


def _kernels(results):
    sections = []
    rows = _of(results, "kernel")
    for operation in dict.fromkeys(row["operation"] for row in rows):
        lines = [
            [
                row["case"],
                row["kernel"] or "",
                f"{1e6 * row['seconds']['median']:.2f}",
                _share(row["seconds"]["spread"]),
                _bound(row["floor_seconds"], 1e6, 2),
                f"{row['bytes'] / 1e6:,.2f}",
                f"{row['flops'] / 1e9:,.2f}",
                _share(row["bandwidth_share"]),
                _share(row["matmul_share"]),
            ]
            for row in rows
            if row["operation"] == operation
        ]
        head = [operation, "kernel", "us", "spread", "lower bound", "MB", "GFLOP"]
        sections.append(table([*head, "of the bandwidth", "of the matrix rate"], lines))
    return sections


def _training(results):
    lines = [
        [
            f"{row['batch_size']} x {row['length']:,}",
            f"{row['document']:,}",
            variant(row),
            _ms(row["seconds"]),
            _share(row["seconds"]["spread"]),
            f"{row['tokens_per_second']:,.0f}",
            _share(row["mfu"]) if row.get("mfu") else "",
            _gb(row["memory_bytes"]),
            f"{row['compile_seconds']:.1f}",
        ]
        for row in _of(results, "training")
    ]
    head = [
        "batch x length",
        "tokens a document",
        "memory",
        "ms per step",
        "spread",
        "tokens/s",
        "MFU",
        "GB",
    ]
    return [table([*head, "compiled in s"], lines)]


TABLES: dict[str, Callable[[Results], list[str]]] = {
    "decode": _decode,
    "generation": _generations,
    "latency": _latency,
    "throughput": _throughput,
    "engine": tables.sections,
    "kernels": _kernels,
    "training": _training,
}
TITLES = {
    "decode": "Prefill and decoding of one row",
    "generation": "Prefill and decoding, beside the peers",
    "latency": "Latency: the model card's table",
    "throughput": "Throughput over batch sizes",
    "engine": "The engine under work",
    "kernels": "Time per operation",
    "training": "Training steps",
}
