"""Compiles a program for a slice of TPU v5e, without a TPU, and says what it needs.

  python -m experiments.compile_tpu --config=configs/compile_tpu.py

The config names topology, mesh, model, weights and job. --sweep compiles a table of them, a row at a
time, and writes it to --output with what the roofline model makes of 1 to 256 chips; rows that are
there already are kept.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from experiments import command, outputs

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs, and a TPU here may be in use

_CONFIG = command.define_config("compile_tpu", "compile_tpu.py")
_SWEEP = flags.DEFINE_bool("sweep", False, "Compile the config's table of programs.")
_OUTPUT = flags.DEFINE_string("output", "docs/tpu", "Folder of the sweep's tables and plot.")
_FIELDS = ("topology", "mesh", "model", "weights", "job", "batch_size", "tokens", "stack_layers")
_FIELDS += ("remat", "loss_chunks", "microbatches", "static")


def main() -> None:
    import jax

    # Compile times are part of the answer, and these programs run nowhere.
    jax.config.update("jax_enable_compilation_cache", False)
    config = {name: _plain(_CONFIG.value[name]) for name in _FIELDS}
    if not _SWEEP.value:
        _print(_compile(config))
        return
    from griffin_jax.locks import Lock
    from griffin_jax.paths import make_folder

    folder = make_folder(outputs.folder(_OUTPUT))
    with Lock(folder / ".lock", str(folder)):
        _sweep(folder, config)


def _sweep(folder: Path, config: dict[str, Any]) -> None:
    from griffin_jax.files import write_json
    from griffin_jax.text_files import read_json

    file = folder / "compiled.json"
    done = read_json(file, list) if file.is_file() else []
    known = {json.dumps(entry["row"], sort_keys=True): entry for entry in done}
    kept = []
    for row in tqdm([_plain(row) for row in _CONFIG.value.rows], desc="compiling", unit="program"):
        key = json.dumps(row, sort_keys=True)
        if key not in known:
            known[key] = {"row": row, "result": _compile(config | row)}
            tqdm.write(_line(known[key]["result"]), file=sys.stderr)
        kept.append(known[key])
        # What a row that is yet to come would find is not lost.
        rest = [entry for other, entry in known.items() if entry not in kept]
        write_json(file, [*kept, *rest], indent=1)
    write_json(file, kept, indent=1)
    _write_page(folder, [entry["result"] for entry in kept])


def _plain(value):
    return value.to_dict() if hasattr(value, "to_dict") else value


def _compile(values: dict[str, Any]) -> dict[str, Any]:
    from griffin_jax.ahead_of_time.programs import Program
    from griffin_jax.ahead_of_time.report import compile_program
    from griffin_jax.sharding import MeshShape

    values = dict(values)
    topology, static = values.pop("topology"), values.pop("static")
    program = Program(**values | {"mesh": MeshShape(**values["mesh"])})
    return compile_program(topology, program, static)


def _print(result: dict[str, Any]) -> None:
    """Prints the result of one program in words."""
    from griffin_jax.ahead_of_time.roofline import V5E

    limit, peak = V5E.memory_bytes, result["memory"]["peak"]
    size = f"{peak / 2**30:.2f}" if peak else "more than what there is"
    print(f"{_line(result)}\n")
    verb = "fits" if result["fits"] else "does not fit"
    print(f"{verb}: {size} of {limit / 2**30:.2f} GiB per chip at its peak")
    if result["fits"]:
        for name in ("arguments", "temporaries", "outputs"):
            note = " beyond the arguments" if name == "outputs" else ""
            print(f"  {name}{note}: {_size(result['memory'][name])}")
        print(f"collectives of each chip: {_collectives(result, sizes=True) or 'none'}")
        print(f"traced and compiled in {result['compile_s']:.1f} s")
    floor = result["roofline"]
    print(
        f"roofline: {floor['seconds'] * 1e3:.2f} ms, bound by {floor['bound']} (memory "
        f"{floor['memory_seconds'] * 1e3:.2f}, compute {floor['compute_seconds'] * 1e3:.2f}, links "
        f"{floor['link_seconds'] * 1e3:.2f}); {floor['tokens_per_second_per_chip']:,.0f} tokens per "
        "second and chip"
    )
    print(
        f"  at {V5E.bytes_per_second / 1e9:.0f} GB/s, {V5E.flops_per_second / 1e12:.0f} TFLOP/s, "
        f"{V5E.link_bytes_per_second / 1e9:.0f} GB/s along an axis of links and "
        f"{V5E.hop_seconds * 1e6:.0f} us a hop"
    )
    if "estimate" in result:
        estimate = result["estimate"]
        print(
            f"static estimate: {estimate['seconds'] * 1e3:.2f} ms, "
            f"{estimate['kernel_seconds'] * 1e3:.2f} of it in products with packed weights; "
            f"{estimate['covered']:.0%} of it by the compiler's cycles, the rest by bytes"
        )


def _line(result):
    mesh = {axis: size for axis, size in result["mesh"].items() if size > 1}
    axes = " x ".join(f"{axis}={size}" for axis, size in mesh.items()) or "one chip"
    what = f"{result['model']} {result['weights']} {result['job']}"
    tokens = "" if result["job"] == "decode" else f" of {result['tokens']:,} tokens"
    return f"{what}, {result['batch_size']} rows{tokens} on {result['topology']} ({axes})"


def _collectives(result, sizes=False):
    found = result.get("collectives", {})
    return ", ".join(
        f"{entry['count']} {kind}" + (f" ({_size(entry['bytes'])})" if sizes else "")
        for kind, entry in sorted(found.items())
    )


def _size(num_bytes):
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**28 else f"{num_bytes / 2**20:.1f} MiB"


def _write_page(folder: Path, results: list[dict[str, Any]]) -> None:
    from griffin_jax import provenance
    from griffin_jax.ahead_of_time import scaling
    from griffin_jax.files import write_json, write_text
    from griffin_jax.markdown import table

    measured = scaling.measured_figures(_CONFIG.value.benchmarks)
    points = scaling.points()
    write_json(folder / "scaling.json", [dataclasses.asdict(p) for p in points], indent=1)
    scaling.plot(points, folder / "scaling.png")
    head = [
        "program",
        "topology",
        "mesh",
        "fits",
        "arguments",
        "temporaries",
        "peak",
        "collectives",
    ]
    head += ["compiled in s", "roofline ms", "static ms", "tokens/s/chip"]
    rows = [_cells(result) for result in results]
    page = (Path(__file__).parent / "compile_tpu.md").read_text(encoding="utf-8")
    page = page.replace("{compiled}", table(head, rows, lined_up=True))
    recorded = provenance.record("compile_tpu", sys.argv[1:])
    page = page.replace("{recorded}", provenance.sentence(recorded))
    page = page.replace("{scaling}", table(*scaling.table(points), lined_up=True))
    page = page.replace("{host}", table(*scaling.host_table(), lined_up=True))
    page = page.replace("{errors}", table(*scaling.errors_table(measured), lined_up=True))
    write_text(folder / "README.md", page)


def _cells(result):
    mesh = {axis: size for axis, size in result["mesh"].items() if size > 1}
    tokens = "" if result["job"] == "decode" else f" x {result['tokens']:,}"
    model = result["model"].replace("recurrentgemma-", "").upper()
    layers = "" if result.get("stack_layers", True) else ", layers unrolled"
    memory, floor = result["memory"], result["roofline"]
    peak = memory["peak"]
    return [
        f"{model} {result['weights']} {result['job']}, {result['batch_size']} rows{tokens}{layers}",
        result["topology"].removeprefix("v5e:"),
        " x ".join(f"{axis} {size}" for axis, size in mesh.items()),
        "yes" if result["fits"] else "no",
        _size(memory["arguments"]) if "arguments" in memory else "",
        _size(memory["temporaries"]) if "temporaries" in memory else "",
        _size(peak) if peak else "",
        _collectives(result),
        f"{result['compile_s']:.0f}" if "compile_s" in result else "",
        f"{floor['seconds'] * 1e3:.2f}",
        f"{result['estimate']['seconds'] * 1e3:.2f}" if "estimate" in result else "",
        f"{floor['tokens_per_second_per_chip']:,.0f}",
    ]


if __name__ == "__main__":
    command.run(main)
