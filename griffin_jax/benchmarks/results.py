"""All figures of one run, on disk and in one line each."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from griffin_jax.benchmarks import machine
from griffin_jax.benchmarks.engine import lines as engine_lines
from griffin_jax.files import write_json

Row = dict[str, Any]

# What a row says by the limits of its device.
BY_LIMITS = ("bandwidth_share", "matmul_share", "prefill_matmul_share", "floor_seconds")


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Writes the results as JSON; see `files.new_file`."""
    write_json(path, results, indent=1)


def has_limits(results: Mapping[str, Any]) -> bool:
    """Returns whether the limits that a run measured are those of its device; see `machine.are_limits`."""
    config = results.get("config", {})
    platform = results["machine"].get("platform", "")
    return machine.are_limits(platform, config.get("copy_bytes"), config.get("matrix"))


def without_shares(row: Row) -> Row:
    """Returns a row of a run whose limits are none: what would be a share of them is None."""
    return row | {field: None for field in BY_LIMITS if field in row}


def name(row: Row) -> str:
    """Returns the model, weights and stack of a row."""
    dtype = "" if row.get("dtype") == row.get("weights") else f":{row.get('dtype')}"
    return f"{row.get('model')}:{row.get('weights')}{dtype}@{row.get('stack')}{on_mesh(row)}"


def by_batch_size(rows: Iterable[Row]) -> list[Row]:
    """Returns rows of fewer texts at once first; several files may hold those of one model."""
    return sorted(rows, key=lambda row: row.get("batch_size", 1))


def on_mesh(row: Row) -> str:
    """Returns on what mesh a row was measured; nothing for one device."""
    axes = ", ".join(f"{axis} {size}" for axis, size in row.get("mesh", {}).items())
    return f" on {row['devices']} devices ({axes})" if axes else ""


def line(row: Row) -> str:
    """Returns a row for the screen."""
    what = row["what"]
    begin = row.get("operation") or (name(row) if "weights" in row else row.get("model", what))
    if row.get("status", "ok") != "ok":
        parts = [
            f"{k} {row[k]}" for k in ("case", "kernel", "batch_size", "tokens_sampled") if k in row
        ]
        return f"{begin}: {', '.join([what, *parts])}: {row['status']}: {row.get('message') or row.get('error')}"
    return f"{begin}: {_TEXTS[what](row)}"


def variant(row: Row) -> str:
    """Returns how a training step spends memory."""
    return f"remat {row['remat']}, loss in {row['loss_chunks']}, batch in {row['microbatches']}"


def _spread(timing):
    return f"(spread {timing['spread']:.1%})"


def _ms(timing):
    return f"{1e3 * timing['median']:.3f} ms {_spread(timing)}"


def _compiled(row):
    if "compile" not in row:
        return ""
    compiled = row["compile"]
    return (
        f"; {compiled['programs']} programs compiled in {compiled['seconds']:.1f} s "
        f"({compiled['cached']} from the cache), first call {row['first_seconds']:.1f} s"
    )


def _of_bandwidth(row):
    share = row["bandwidth_share"]
    return "" if share is None else f", {share:.1%} of the bandwidth"


def _of_rate(row, field="matmul_share"):
    return "" if row[field] is None else f", {row[field]:.1%} of the matrix rate"


def _floor(row, scale):
    seconds = row["floor_seconds"]
    return "" if seconds is None else f", floor {scale * seconds:.{2 if scale > 1e3 else 3}f}"


def _generation(row):
    first, step = row["first_token_seconds"], row["seconds_per_token"]
    return (
        f"prompt of {row['prompt']} to first token {first['median']:.4f} s {_spread(first)}"
        f"{_of_rate(row, 'prefill_matmul_share')}; then {_ms(step)} per token"
        f"{_of_bandwidth(row)}; peak {_gigabytes(row['peak_bytes'])}{_compiled(row)}"
    )


def _exchanged(row):
    if "collectives" not in row:
        return ""
    found = row["collectives"]
    return f", {1e3 * found['seconds']:.3f} ms of it in {found['launches']:.0f} collectives"


def _prefill(row):
    return (
        f"prefill of {row['batch_size']} x {row['prompt']}: {row['seconds']['median']:.4f} s "
        f"{_spread(row['seconds'])}{_of_rate(row)}, "
        f"{row['tokens_per_second']:,.0f} tokens/s{_compiled(row)}"
    )


def _decode(row):
    return (
        f"at {row['position']}, batch {row['batch_size']}: {_ms(row['seconds_per_token'])} per step"
        f"{_exchanged(row)}{_floor(row, 1e3)}, {row['tokens_per_second']:,.0f} tokens/s"
        f"{_of_bandwidth(row)}; state {row['state_bytes'] / 1e6:.1f} MB, "
        f"peak {_gigabytes(row['peak_bytes'])}{_compiled(row)}"
    )


def _streaming(row):
    whole, streamed = row["whole_seconds_per_token"], row["seconds_per_token"]
    return (
        f"at {row['position']}, {row['tokens']} tokens streamed in {row['bursts']} bursts of at "
        f"most {row['burst']}: {_ms(streamed)} per token, in one dispatch {_ms(whole)}; streaming "
        f"costs {row['cost']:.2%} of throughput{_compiled(row)}"
    )


def _throughput(row):
    read = row.get("prefill_tokens_per_second")
    text = (
        f"batch {row['batch_size']}: {row['tokens_per_second']:,.0f} sampled tokens/s, "
        f"{_ms(row['seconds_per_token'])} per step{_exchanged(row)}{_of_bandwidth(row)}{_of_rate(row)}, "
        f"peak {_gigabytes(row['peak_bytes'])}"
    )
    return text + (f", prefill {read:,.0f} tokens/s" if read else "") + _compiled(row)


def _latency(row):
    return (
        f"{row['tokens_sampled']} tokens after {row['prompt']}: {row['seconds']['median']:.2f} s "
        f"{_spread(row['seconds'])}, first token {row['first_token_seconds']['median']:.3f} s, "
        f"{_ms(row['seconds_per_token'])} per token{_of_bandwidth(row)}, "
        f"peak {_gigabytes(row['peak_bytes'])}"
    )


def _long_prompt(row):
    return (
        f"{row['tokens_read']} tokens read: {row['tokens_per_second']:,.0f} tokens/s, "
        f"state {row['state_bytes'] / 1e6:.1f} MB, peak {_gigabytes(row['peak_bytes'])}"
    )


def _kernel(row):
    kernel = f" by {row['kernel']}" if row["kernel"] else ""
    timing = row["seconds"]
    return (
        f"{row['case']}{kernel}: {1e6 * timing['median']:.2f} us {_spread(timing)}{_floor(row, 1e6)}"
        f"{_of_bandwidth(row)}{_of_rate(row)}; first call {row['first_seconds']:.1f} s"
    )


def _gigabytes(count):
    return "unknown" if count is None else f"{count / 1e9:.2f} GB"


def _training(row):
    return (
        f"{row['batch_size']} x {row['length']}{on_mesh(row)} in documents of {row['document']}, {variant(row)}: "
        f"{_ms(row['seconds'])} per step, {row['tokens_per_second']:,.0f} tokens/s"
        + (f", MFU {row['mfu']:.1%}" if row.get("mfu") else "")
        + f", {row['memory_bytes'] / 1e9:.1f} GB; compiled in {row['compile_seconds']:.1f} s"
    )


_TEXTS = {
    "generation": _generation,
    "prefill": _prefill,
    "decode": _decode,
    "streaming": _streaming,
    "throughput": _throughput,
    "latency": _latency,
    "long prompt": _long_prompt,
    "kernel": _kernel,
    "training": _training,
    **engine_lines.LINES,
}
