"""The engine's workloads as lines for the screen."""

from collections.abc import Callable
from typing import Any

from griffin_jax.benchmarks.engine.tables import accepted, host, of_full, two

Row = dict[str, Any]


def _offline(row):
    text = f"{row['tokens_per_second']:,.0f} new tokens/s over {row['requests']} requests"
    if "drawn_per_second" in row and "full_rows_per_second" in row:
        text += (
            f" (reading alone {row['reading_seconds']:.1f} s, the rest "
            f"{row['drawn_per_second']:,.0f} tokens/s, {of_full(row):.0%} of full rows')"
        )
    return f"{row['way']}: {text} of {row['prompt_tokens']:,} + {row['new_tokens']:,} tokens"


def _load(row):
    first, each, gap = (
        row[key] for key in ("first_token_seconds", "seconds_per_token", "seconds_between_pieces")
    )
    return (
        f"{row['concurrent']} at once ({row['mean_inside']:.1f} on the way): first token "
        f"{two(first)} ms, per token {two(each)} ms, between pieces {two(gap)} ms; "
        f"{row['tokens_per_second']:,.0f} tokens/s, {host(row)}"
    )


def _host_work(row):
    return (
        f"{row['rows']} rows that are full: {1e3 * row['step_seconds']:.2f} ms a step, {host(row)}; a "
        f"token takes the host {1e6 * row['host_seconds_per_token']:.2f} us (of it handing over "
        f"{1e6 * row['dispatch_seconds_per_token']:.2f}), its thread's own work is "
        f"{1e6 * row['thread_seconds_per_token']:.2f} us, and who takes it "
        f"{1e6 * row['take_seconds_per_token']:.2f} us"
    )


def _serving(row):
    return (
        f"{row['clients']} clients: {row['tokens_per_second']:,.0f} tokens/s, "
        f"{row['tokens_per_second'] / row['engine_tokens_per_second']:.0%} of the engine's "
        f"{row['engine_tokens_per_second']:,.0f}; first token {two(row['first_token_seconds'])} ms, "
        f"per token {two(row['seconds_per_token'])} ms, between pieces "
        f"{two(row['seconds_between_pieces'])} ms, {host(row)}"
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
        f"{row['times_faster']:.2f} times as fast, {accepted(row)} of drafts accepted, "
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
    "host work": _host_work,
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
