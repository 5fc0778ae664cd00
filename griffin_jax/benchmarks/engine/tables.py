"""The engine's workloads as tables."""

from collections.abc import Callable
from typing import Any

from griffin_jax.markdown import table

Row = dict[str, Any]

# Batches of a peer's that begin and end together, beside the clients of a server.
STATIC = "static batch"
# What a client waits for, by field.
WAITS = {
    "first_token_seconds": "first token",
    "seconds_between_pieces": "between pieces",
    "seconds_per_token": "per token",
}


def sections(results: dict[str, Any]) -> list[str]:
    """Returns the tables of results, those of a workload under each other."""
    found = []
    for what, (head, cells) in _TABLES.items():
        rows = [r for r in results["rows"] if r["what"] == what and r.get("status") == "ok"]
        models = list(dict.fromkeys(map(model_of, rows)))
        rows.sort(key=lambda row: (models.index(model_of(row)), row.get("clients", 0)))
        if rows:
            found.append(table(["model", *head], [[model_of(row), *cells(row)] for row in rows]))
    return found


def model_of(row: Row) -> str:
    """Returns which model a row is of, how its weights are held, and what runs it if a peer does."""
    peer = "" if row["stack"] == "griffin_jax" else f"@{row['stack']}"
    return f"{row['model']}:{row['weights']}{peer}"


def whole(row: Row) -> float:
    """Returns the new tokens per second of a static batch from its prompts' arrival to its last token."""
    steps = (row["tokens"] - 1) * row["seconds_per_token"]["median"]
    return row["batch_size"] * row["tokens"] / (row["first_token_seconds"]["median"] + steps)


def _megabytes(sizes):
    return ", ".join("" if x is None else f"{x / 1e6:,.1f}" for x in sizes)


def two(seconds: Row) -> str:
    """Returns the median and the late one of waits, in ms."""
    return f"{1e3 * seconds['median']:,.1f} / {1e3 * seconds['late']:,.1f}"


def of_full(row: Row) -> float:
    """Returns the tokens per second but for reading, of those of rows that are always full."""
    return row["drawn_per_second"] / row["full_rows_per_second"]


_HOST = ["host's share", "share of handing over", "device idle at most"]


def _shares(row):
    keys = "host_share", "dispatch_share", "idle_share"
    return [f"{row[key]:.1%}" if key in row else "" for key in keys]


def host(row: Row) -> str:
    """Returns the host's shares of a row, as a line tells them."""
    share, dispatch, idle = _shares(row)
    return f"host {share}, of it {dispatch} handing over, device idle {idle} at most"


def accepted(row: Row) -> str:
    """Returns the share of drafts that was accepted."""
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
            *_HOST,
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
            f"{of_full(row):.0%}"
            if "drawn_per_second" in row and "full_rows_per_second" in row
            else "",
            *_shares(row),
        ],
    ),
    "host work": (
        [
            "full rows",
            "steps a burst",
            "ms a step",
            "tokens/s",
            "us of the host a token",
            "of it handing over",
            "its thread's own work",
            "us to take one",
            *_HOST,
        ],
        lambda row: [
            str(row["rows"]),
            f"{row['steps_of_burst']:.0f}",
            f"{1e3 * row['step_seconds']:.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{1e6 * row['host_seconds_per_token']:.2f}",
            f"{1e6 * row['dispatch_seconds_per_token']:.2f}",
            f"{1e6 * row['thread_seconds_per_token']:.2f}",
            f"{1e6 * row['take_seconds_per_token']:.2f}",
            *_shares(row),
        ],
    ),
    "load": (
        [
            "at once",
            "on the way",
            "arriving/s",
            *(f"{title}, ms" for title in WAITS.values()),
            "tokens/s",
            *_HOST,
        ],
        lambda row: [
            str(row["concurrent"]),
            f"{row['mean_inside']:.1f}",
            f"{row['rate']:.2f}",
            *(two(row[wait]) for wait in WAITS),
            f"{row['tokens_per_second']:,.0f}",
            *_shares(row),
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
            *(f"{title}, ms" for title in WAITS.values()),
            *_HOST,
        ],
        lambda row: [
            str(row["clients"]),
            f"{row['prompt']:,}",
            str(row["new_tokens"]),
            f"{row['tokens_per_second']:,.0f}",
            f"{row['engine_tokens_per_second']:,.0f}",
            f"{row['tokens_per_second'] / row['engine_tokens_per_second']:.0%}",
            *(two(row[wait]) for wait in WAITS),
            *_shares(row),
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
            f"{whole(row):,.0f}",
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
            accepted(row),
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
