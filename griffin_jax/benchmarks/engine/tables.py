"""The engine's workloads as text: a line for the screen, tables, a plot."""

from collections.abc import Callable
from typing import Any

from griffin_jax.markdown import table

Row = dict[str, Any]

# Batches of a peer's that begin and end together, beside the clients of a server.
STATIC = "static batch"
# What a client waits for, by field.
_WAITS = {
    "first_token_seconds": "first token",
    "seconds_between_pieces": "between pieces",
    "seconds_per_token": "per token",
}


def _offline(row):
    text = f"{row['tokens_per_second']:,.0f} new tokens/s over {row['requests']} requests"
    if "drawn_per_second" in row and "full_rows_per_second" in row:
        text += (
            f" (reading alone {row['reading_seconds']:.1f} s, the rest "
            f"{row['drawn_per_second']:,.0f} tokens/s, {_of_full(row):.0%} of full rows')"
        )
    return f"{row['way']}: {text} of {row['prompt_tokens']:,} + {row['new_tokens']:,} tokens"


def _load(row):
    first, each, gap = (
        row[key] for key in ("first_token_seconds", "seconds_per_token", "seconds_between_pieces")
    )
    return (
        f"{row['concurrent']} at once ({row['mean_inside']:.1f} on the way): first token "
        f"{_two(first)} ms, per token {_two(each)} ms, between pieces {_two(gap)} ms; "
        f"{row['tokens_per_second']:,.0f} tokens/s, host {row['host_share']:.1%}"
    )


def _serving(row):
    return (
        f"{row['clients']} clients: {row['tokens_per_second']:,.0f} tokens/s, "
        f"{row['tokens_per_second'] / row['engine_tokens_per_second']:.0%} of the engine's "
        f"{row['engine_tokens_per_second']:,.0f}; first token {_two(row['first_token_seconds'])} ms, "
        f"per token {_two(row['seconds_per_token'])} ms, between pieces "
        f"{_two(row['seconds_between_pieces'])} ms, host {row['host_share']:.1%}"
    )


def _conversations(row):
    hits = f", {row['hit_rate']:.1%} hits" if "hit_rate" in row else ""
    return (
        f"{row['conversations']} conversations of {row['turns']} turns, cache {row['cache']}: "
        f"{row['read_tokens']:,} of {row['alone_tokens']:,} tokens read{hits}, {row['seconds']:.1f} s; "
        f"one more turn alone: first token after {1e3 * row['alone_first_token_seconds']:.1f} ms "
        f"({1e3 * row['unknown_first_token_seconds']:.1f} by a cache that knows nothing), "
        f"{row['equal_logits']} of {row['alone']} logits equal bit for bit"
    )


def _first(row):
    return (
        f"first token after {row['prompt']:,} tokens: {1e3 * row['without_seconds']:.1f} ms, with a "
        f"cache that keeps states at multiples of {row['every']} {1e3 * row['with_seconds']:.1f} ms"
    )


def _forks(row):
    return (
        f"{row['document']:,} tokens read in {row['document_seconds']:.1f} s; {row['forks']} forks "
        f"in {row['forks_seconds']:.2f} s, {row['read_tokens']} tokens read in them"
    )


def _saved(row):
    return (
        f"a context of {row['tokens']:,} tokens: {row['file_bytes'] / 1e6:.2f} MB, saved in "
        f"{row['save_seconds']:.3f} s, loaded in {row['load_seconds']:.3f} s, next 200 tokens "
        f"{'equal' if row['next_200_equal'] else 'DIFFER'}"
    )


def _speculation(row):
    return (
        f"{row['text']}, {row['way']}: {1e3 * row['seconds_per_token']:.3f} ms per token, "
        f"{row['times_faster']:.2f} times as fast, {_accepted(row)} of drafts accepted, "
        f"{row['equal_tokens']} of {row['new_tokens']} tokens equal"
    )


def _real_text(row):
    return (
        f"{row['text']}: {row['tokens_per_call']:.2f} tokens a call with drafts of {row['draft']}"
    )


def _memory(row):
    live = " ".join(f"{x / 1e6:.2f}" for x in row["live_bytes"])
    return (
        f"{row['requests']} requests: {live} MB of arrays at a tenth, half and end, a slot of "
        f"{row['slot_bytes']:,.0f} bytes ({row['reckoned_bytes']:,} reckoned), {row['left_bytes']} bytes "
        f"and {row['left_requests']} requests left behind"
    )


LINES: dict[str, Callable[[Row], str]] = {
    "offline": _offline,
    "load": _load,
    "serving": _serving,
    "conversations": _conversations,
    "first token": _first,
    "forks": _forks,
    "saved context": _saved,
    "speculation": _speculation,
    "real text": _real_text,
    "steady memory": _memory,
}


def sections(results: dict[str, Any]) -> list[str]:
    """Returns the tables of results, those of a workload under each other."""
    found = []
    for what, (head, cells) in _TABLES.items():
        rows = [r for r in results["rows"] if r["what"] == what and r.get("status") == "ok"]
        models = list(dict.fromkeys(map(_model, rows)))
        rows.sort(key=lambda row: (models.index(_model(row)), row.get("clients", 0)))
        if rows:
            found.append(table(["model", *head], [[_model(row), *cells(row)] for row in rows]))
    return found


def load(axis: Any, results: dict[str, Any]) -> None:
    """Plots latencies over the requests that are on their way at once."""
    rows = [row for row in results["rows"] if row["what"] == "load"]
    counts = [row["concurrent"] for row in rows]
    for key, label in _WAITS.items():
        (line,) = axis.plot(counts, [1e3 * row[key]["median"] for row in rows], "o-", label=label)
        late = [1e3 * row[key]["late"] for row in rows]
        axis.plot(counts, late, "x:", color=line.get_color(), label=f"{label}, 99th percentile")
    axis.set(xlabel="requests at once", ylabel="ms", yscale="log")
    axis.set_xscale("log", base=2)
    axis.legend(fontsize=8)


def serving(axis: Any, results: dict[str, Any]) -> None:
    """Draws output tokens per second over the number of clients, of servers and of their engines."""
    rows = [row for row in results["rows"] if row["what"] == "serving"]
    for model in dict.fromkeys(map(_model, rows)):
        own = sorted((r for r in rows if _model(r) == model), key=lambda r: r["clients"])
        counts = [row["clients"] for row in own]
        speeds = [row["tokens_per_second"] for row in own]
        (line,) = axis.plot(counts, speeds, "o-", label=f"{model}, server")
        alone = [row["engine_tokens_per_second"] for row in own]
        axis.plot(counts, alone, "x:", color=line.get_color(), label=f"{model}, engine alone")
    peers = [row for row in results["rows"] if row["what"] == STATIC]
    for model in dict.fromkeys(map(_model, peers)):
        own = [row for row in peers if _model(row) == model]
        sizes, speeds = [row["batch_size"] for row in own], [_whole(row) for row in own]
        axis.plot(sizes, speeds, "s--", label=f"{model}, static batches")
    axis.set(xlabel="clients at once", ylabel="output tokens per second", yscale="log")
    axis.set_xscale("log", base=2)
    axis.legend(fontsize=8)


def _model(row):
    peer = "" if row["stack"] == "griffin_jax" else f"@{row['stack']}"
    return f"{row['model']}:{row['weights']}{peer}"


def _whole(row):
    """Returns the new tokens per second of a static batch from its prompts' arrival to its last token."""
    steps = (row["tokens"] - 1) * row["seconds_per_token"]["median"]
    return row["batch_size"] * row["tokens"] / (row["first_token_seconds"]["median"] + steps)


def _megabytes(sizes):
    return ", ".join("" if x is None else f"{x / 1e6:,.1f}" for x in sizes)


def _two(seconds):
    return f"{1e3 * seconds['median']:,.1f} / {1e3 * seconds['late']:,.1f}"


def _of_full(row):
    """Returns the tokens per second but for reading, of those of rows that are always full."""
    return row["drawn_per_second"] / row["full_rows_per_second"]


def _accepted(row):
    return (
        f"{row['accepted_tokens'] / row['drafted_tokens']:.1%}" if row["drafted_tokens"] else "none"
    )


_TABLES: dict[str, tuple[list[str], Callable[[Row], list[str]]]] = {
    "offline": (
        [
            "offline",
            "rows",
            "requests",
            "prompt tokens",
            "new tokens",
            "s",
            "s of all cores",
            "new tokens/s",
            "reading alone, s",
            "new tokens/s but for it",
            "of full rows alone",
        ],
        lambda row: [
            row["way"],
            str(row["slots"]),
            str(row["requests"]),
            f"{row['prompt_tokens']:,}",
            f"{row['new_tokens']:,}",
            f"{row['seconds']:.1f}",
            f"{row['cpu_seconds']:.1f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['reading_seconds']:.1f}" if "reading_seconds" in row else "",
            f"{row['drawn_per_second']:,.0f}" if "drawn_per_second" in row else "",
            f"{_of_full(row):.0%}"
            if "drawn_per_second" in row and "full_rows_per_second" in row
            else "",
        ],
    ),
    "load": (
        [
            "at once",
            "on the way",
            "arriving/s",
            *(f"{title}, ms" for title in _WAITS.values()),
            "tokens/s",
            "host's share",
        ],
        lambda row: [
            str(row["concurrent"]),
            f"{row['mean_inside']:.1f}",
            f"{row['rate']:.2f}",
            *(_two(row[wait]) for wait in _WAITS),
            f"{row['tokens_per_second']:,.0f}",
            f"{row['host_share']:.1%}",
        ],
    ),
    "serving": (
        [
            "clients",
            "prompt",
            "new tokens",
            "output tokens/s",
            "the engine's own",
            "share",
            *(f"{title}, ms" for title in _WAITS.values()),
            "host's share",
        ],
        lambda row: [
            str(row["clients"]),
            f"{row['prompt']:,}",
            str(row["new_tokens"]),
            f"{row['tokens_per_second']:,.0f}",
            f"{row['engine_tokens_per_second']:,.0f}",
            f"{row['tokens_per_second'] / row['engine_tokens_per_second']:.0%}",
            *(_two(row[wait]) for wait in _WAITS),
            f"{row['host_share']:.1%}",
        ],
    ),
    STATIC: (
        [
            "rows of a static batch",
            "prompt",
            "new tokens",
            "tokens/s",
            "first token, ms",
            "ms a step",
        ],
        lambda row: [
            str(row["batch_size"]),
            f"{row['prompt']:,}",
            str(row["tokens"]),
            f"{_whole(row):,.0f}",
            f"{1e3 * row['first_token_seconds']['median']:,.1f}",
            f"{1e3 * row['seconds_per_token']['median']:.1f}",
        ],
    ),
    "conversations": (
        [
            "cache",
            "conversations",
            "turns",
            "tokens alone",
            "tokens read",
            "hits",
            "all, s",
            "one more turn: first token, ms",
            "by a cache that knows nothing",
            "logits equal bit for bit",
            "largest difference",
        ],
        lambda row: [
            row["cache"],
            str(row["conversations"]),
            str(row["turns"]),
            f"{row['alone_tokens']:,}",
            f"{row['read_tokens']:,}",
            f"{row['hit_rate']:.1%}" if "hit_rate" in row else "",
            f"{row['seconds']:.1f}",
            f"{1e3 * row['alone_first_token_seconds']:.1f}",
            f"{1e3 * row['unknown_first_token_seconds']:.1f}"
            if "unknown_first_token_seconds" in row
            else "",
            f"{row['equal_logits']} of {row['alone']}",
            f"{row['largest_difference']:.1e}",
        ],
    ),
    "first token": (
        ["prompt tokens", "first token, ms", "with a cache, ms", "later by", "states kept at"],
        lambda row: [
            f"{row['prompt']:,}",
            f"{1e3 * row['without_seconds']:.1f}",
            f"{1e3 * row['with_seconds']:.1f}",
            f"{row['with_seconds'] / row['without_seconds'] - 1:+.1%}",
            f"multiples of {row['every']}",
        ],
    ),
    "forks": (
        ["document", "read in s", "forks", "tokens read in forks", "forks in s", "state bytes"],
        lambda row: [
            f"{row['document']:,}",
            f"{row['document_seconds']:.1f}",
            str(row["forks"]),
            str(row["read_tokens"]),
            f"{row['forks_seconds']:.2f}",
            f"{row['state_bytes']:,}",
        ],
    ),
    "saved context": (
        ["context of", "read in s", "file bytes", "saved in s", "loaded in s", "next 200 equal"],
        lambda row: [
            f"{row['tokens']:,} tokens",
            f"{row['read_seconds']:.1f}",
            f"{row['file_bytes']:,}",
            f"{row['save_seconds']:.3f}",
            f"{row['load_seconds']:.3f}",
            "yes" if row["next_200_equal"] else "no",
        ],
    ),
    "speculation": (
        [
            "what is written",
            "way",
            "ms per token",
            "times as fast",
            "accepted",
            "tokens a call",
            "equal",
        ],
        lambda row: [
            row["text"],
            row["way"],
            f"{1e3 * row['seconds_per_token']:.3f}",
            f"{row['times_faster']:.2f}",
            _accepted(row),
            f"{1 + row['accepted_tokens'] / row['draft_calls']:.2f}" if row["draft_calls"] else "",
            f"{row['equal_tokens']} of {row['new_tokens']}",
        ],
    ),
    "real text": (
        ["what is written", "draft", "tokens", "calls", "tokens a call"],
        lambda row: [
            row["text"],
            str(row["draft"]),
            f"{row['new_tokens']:,}",
            f"{row['calls']:,}",
            f"{row['tokens_per_call']:.2f}",
        ],
    ),
    "steady memory": (
        [
            "requests",
            "s",
            "how they ended",
            "killed",
            "MB of arrays at 10%, 50%, 100%",
            "MB of the process there",
            "before, after",
            "bytes of a slot",
            "reckoned",
            "bytes, requests left",
        ],
        lambda row: [
            f"{row['requests']:,}",
            f"{row['seconds']:.0f}",
            ", ".join(f"{count:,} {reason}" for reason, count in row["ended"].items()),
            str(row["killed"]),
            ", ".join(f"{x / 1e6:.2f}" for x in row["live_bytes"]),
            _megabytes(row["process_bytes"]),
            _megabytes([row["process_bytes_before"], row["process_bytes_after"]]),
            f"{row['slot_bytes']:,.0f}",
            f"{row['reckoned_bytes']:,}",
            f"{row['left_bytes']}, {row['left_requests']}",
        ],
    ),
}
