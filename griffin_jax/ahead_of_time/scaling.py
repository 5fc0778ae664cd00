"""Tokens per second and chip over 1 to 256 chips of TPU v5e, from the roofline model alone."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import jax

import griffin_jax
from griffin_jax.ahead_of_time import programs, roofline
from griffin_jax.ahead_of_time.programs import Program
from griffin_jax.ahead_of_time.roofline import H200, V5E, Machine, Roofline
from griffin_jax.benchmarks.counting import cache_bytes
from griffin_jax.benchmarks.subject import OURS
from griffin_jax.config import GriffinConfig
from griffin_jax.files import new_file
from griffin_jax.models import abstract_params
from griffin_jax.paths import resolve
from griffin_jax.plotting import pyplot
from griffin_jax.sharding import MeshShape
from griffin_jax.text_files import read_json

CHIPS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# The work that more and more chips share: rows decoded at once, or sequences in a batch of tokens.
_ROWS, _POSITION, _TOKENS = 256, 4096, 2048
_ROOM = 2**30  # of a chip's memory, for activations and temporaries
_ONE_GPU = MeshShape()
# What configs/bench_training.py trains, but for its number of layers.
_TRAINED = GriffinConfig(
    vocab_size=32_000,
    width=2560,
    mlp_width=7680,
    num_layers=12,
    num_heads=20,
    attention_window=1024,
)
_JOBS = (
    ("9B NF4 decode", "recurrentgemma-9b", "nf4", "decode"),
    ("9B bf16 decode", "recurrentgemma-9b", "bf16", "decode"),
    ("2B train", "recurrentgemma-2b", "bf16", "train"),
    ("9B train", "recurrentgemma-9b", "bf16", "train"),
)


@dataclasses.dataclass(frozen=True)
class Point:
    """The best of the meshes of so many chips.

    Attributes:
      job: What runs.
      chips: How many.
      mesh: How they share the work.
      seconds: The duration of a step.
      tokens_per_second_per_chip: At that.
      bound: What the time goes into, mostly.
    """

    job: str
    chips: int
    mesh: str
    seconds: float
    tokens_per_second_per_chip: float
    bound: str


def points() -> list[Point]:
    """Returns the best mesh for every job and number of chips that hold it."""
    found = []
    for name, model, weights, job in _JOBS:
        for chips in CHIPS:
            options = list((_train if job == "train" else _decode)(model, weights, chips))
            if options:
                mesh, floor = max(options, key=lambda o: o[1].tokens_per_second_per_chip)
                rate = floor.tokens_per_second_per_chip
                found.append(Point(name, chips, str(mesh), floor.seconds, rate, floor.bound))
    return found


@functools.cache  # it traces the model
def _weight_bytes(model, weights):
    return roofline.tree_bytes(programs.abstract_arguments(Program(model, weights)))


def _decode(model, weights, chips) -> Iterator[tuple[MeshShape, Roofline]]:
    config = griffin_jax.preset(model)
    size = _weight_bytes(model, weights)
    for cut in CHIPS:
        if chips % cut or config.num_heads % cut or _ROWS % (chips // cut):
            continue
        mesh = MeshShape(data=chips // cut, model=cut)
        # The one head of keys and values is whole on every chip.
        state = _ROWS // mesh.data * cache_bytes(config, _POSITION)
        if size / cut + state + _ROOM <= V5E.memory_bytes:
            yield mesh, roofline.decode_roofline(config, size, _ROWS, mesh, position=_POSITION)


def _train(model, weights, chips) -> Iterator[tuple[MeshShape, Roofline]]:
    config = griffin_jax.preset(model)
    count = _weight_bytes(model, weights) // 2
    # Weights, two moments and gradients in float32, and room for activations.
    if 16 * count / chips + 4 * _ROOM <= V5E.memory_bytes:
        mesh = MeshShape(fsdp=chips)
        yield mesh, roofline.train_roofline(config, count, _ROWS, _TOKENS, mesh)


def table(found: list[Point]) -> tuple[list[str], list[list[str]]]:
    """Returns head and rows: a line per number of chips, a column per job."""
    jobs = list(dict.fromkeys(point.job for point in found))
    rows = []
    for chips in CHIPS:
        cells = {p.job: p for p in found if p.chips == chips}
        rows.append([str(chips), *(_cell(cells.get(job)) for job in jobs)])
    return ["chips", *jobs], rows


def _cell(point):
    if point is None:
        return ""
    mesh = point.mesh.replace(" x ", ", ").replace("=", " ") or "one chip"
    return f"{point.tokens_per_second_per_chip:,.0f} ({mesh}; {point.seconds * 1e3:,.1f} ms)"


def host_table() -> tuple[list[str], list[list[str]]]:
    """Returns head and rows: milliseconds of a step on 1 to 8 H200 of a host, and what part links
    take of it.

    Decoding is cut over "model", training over "fsdp". A prediction, to be held against what
    `experiments.benchmark` measures with `--config.mesh.model` and `--config.mesh.fsdp`.
    """
    counts = [count for count in CHIPS if count <= 8]

    def row(name, predict):
        return [name, *(_part(predict(count)) for count in counts)]

    config = griffin_jax.preset("recurrentgemma-9b")
    rows = []
    for weights in ("nf4", "bf16"):
        size = _weight_bytes("recurrentgemma-9b", weights)
        for batch in (1, 16, 64, 256):

            def decode(n, size=size, batch=batch):
                mesh = MeshShape(model=n)
                return roofline.decode_roofline(config, size, batch, mesh, H200, 2048)

            rows.append(row(f"9B {weights} decode, {batch} rows", decode))
    for layers, again in ((12, False), (24, True)):
        shape = _TRAINED.replace(num_layers=layers)
        count = sum(x.size for x in jax.tree.leaves(abstract_params(shape)))

        def train(n, shape=shape, count=count, again=again):
            mesh = MeshShape(fsdp=n)
            return roofline.train_roofline(shape, count, 16, 2048, mesh, H200, recompute=again)

        remat = ", remat block" if again else ""
        rows.append(row(f"{count / 1e9:.1f}B train, 16 x 2,048{remat}", train))
    size = _weight_bytes("recurrentgemma-9b", "nf4")
    rows.append(
        row(
            "9B nf4 LoRA, 16 x 1,024",
            lambda n: roofline.lora_roofline(config, size, 16, 1024, MeshShape(fsdp=n), H200),
        )
    )
    return ["", *(f"{n} GPU{'s' if n > 1 else ''}" for n in counts)], rows


def _part(floor):
    text = f"{floor.seconds * 1e3:.2f}"
    return text + (f" ({floor.link_seconds / floor.seconds:.0%})" if floor.chips > 1 else "")


def plot(found: list[Point], path: Path) -> None:
    """Draws a line for each job.

    Raises:
      ImportError: matplotlib is not installed.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for job in dict.fromkeys(point.job for point in found):
        line = [p for p in found if p.job == job]
        rates = [p.tokens_per_second_per_chip for p in line]
        axes.plot([p.chips for p in line], rates, marker="o", label=job)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(CHIPS, labels=map(str, CHIPS))
    axes.set_xlabel("TPU v5e chips")
    axes.set_ylabel("tokens per second and chip (roofline)")
    axes.grid(alpha=0.3)
    axes.legend()
    with new_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
    plt.close(figure)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A figure of one GPU, or of several of a host, to hold the model against.

    Attributes:
      what: "decode" or "prefill", of the 9B, or "train".
      weights: As for `Program`.
      seconds: The duration of a token, of a prompt, or of a step.
      tokens: Read before, in the prompt, or in each sequence.
      limits: What each GPU reached in copies and matrix products.
      source: Where it comes from.
      config: What is trained.
      rows: Sequences, over all GPUs.
      remat: In training, what is computed again; see `Griffin`.
      mesh: How GPUs shared the work.
    """

    what: str
    weights: str
    seconds: float
    tokens: int
    limits: Machine
    source: str
    config: GriffinConfig | None = None
    rows: int = 1
    remat: str = "none"
    mesh: MeshShape = _ONE_GPU


def measured_figures(folder: Path) -> list[Measured]:
    """Returns what `experiments.benchmark` left; of decoding, where it left nothing, others' code.

    Args:
      folder: With JSON files of `experiments.benchmark`.

    Raises:
      TextFileError: a file of the folder is not JSON.
    """
    folder = resolve(folder, "folder")
    found = {"decode": [], "throughput": [], "training": []}
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        results = read_json(path, object)
        if not isinstance(results, dict) or results.get("kind") not in found:
            continue
        if results["machine"].get("platform", "gpu") != "gpu":
            continue
        limits = results["limits"]
        machine = Machine(
            0.0,
            limits["bytes_per_second"],
            limits["flops_per_second"],
            H200.link_bytes_per_second,
            H200.hop_seconds,
            switched=True,
        )
        source = f"{results['machine']['device']}, {path.name}"
        read = _of_training if results["kind"] == "training" else _of_decoding
        found[results["kind"]] += read(results, machine, source)
    return (found["decode"] or list(_OTHERS)) + found["throughput"] + found["training"]


def _of_decoding(results, machine, source):
    for row in results["rows"]:
        if row.get("model") != "recurrentgemma-9b" or row.get("status", "ok") != "ok":
            continue
        weights = {"bfloat16": "bf16"}.get(row["weights"], row["weights"])
        mesh, batch_size = MeshShape(**row.get("mesh", {})), row.get("batch_size", 1)
        batches = row["what"] == "throughput" and row.get("stack", OURS) == OURS
        if batches or (row["what"] == "decode" and batch_size == 1):
            yield Measured(
                "decode",
                weights,
                row["seconds_per_token"]["median"],
                row["position"],
                machine,
                source,
                rows=batch_size,
                mesh=mesh,
            )
        elif row["what"] == "prefill" and row.get("batch_size", 1) == 1:
            seconds = row["seconds"]["median"]
            yield Measured("prefill", weights, seconds, row["prompt"], machine, source)


def _of_training(results, machine, source):
    config = GriffinConfig(**results["config"]["model"])
    for row in results["rows"]:
        # Packed documents are the same work.
        if row["status"] == "ok" and row["document"] == row["length"]:
            yield Measured(
                "train",
                "bf16",
                row["seconds"]["median"],
                row["length"],
                machine,
                source,
                config,
                row["batch_size"],
                row["remat"],
                MeshShape(**row.get("mesh", {})),
            )


# recurrentgemma 1.0.1 in JAX 0.11.2 and bfloat16 on an H100 80GB with 3.02 TB/s of copies and 790
# TFLOP/s of products, prompt of 4,096.
_H100 = Machine(80e9, 3.02e12, 790e12)
_OTHERS = (
    Measured("decode", "bf16", 6.8e-3, 4096, _H100, "H100, recurrentgemma 1.0.1"),
    Measured("prefill", "bf16", 0.21, 4096, _H100, "H100, recurrentgemma 1.0.1"),
)


def errors_table(figures: list[Measured]) -> tuple[list[str], list[list[str]]]:
    """Returns head and rows: measured, by the model, and by how much the model is off."""
    rows = []
    for figure in figures:
        name, floor = _floor(figure)
        rows.append(
            [
                name,
                figure.source,
                f"{figure.seconds * 1e3:.2f}",
                f"{floor.seconds * 1e3:.2f}",
                f"{floor.seconds / figure.seconds - 1:+.0%}",
            ]
        )
    return ["figure", "measured on", "measured ms", "roofline ms", "error of the model"], rows


def _floor(figure):
    """Returns what the figure is of, and the model's time of it."""
    if figure.what == "train":
        count = sum(x.size for x in jax.tree.leaves(abstract_params(figure.config)))
        name = f"{count / 1e9:.1f}B train, {figure.rows} x {figure.tokens:,}"
        name += f", remat {figure.remat}" if figure.remat != "none" else ""
        return name + _shared(figure.mesh), (
            roofline.train_roofline(
                figure.config,
                count,
                figure.rows,
                figure.tokens,
                figure.mesh,
                figure.limits,
                recompute=figure.remat == "block",
            )
        )
    config = griffin_jax.preset("recurrentgemma-9b")
    size = _weight_bytes("recurrentgemma-9b", figure.weights)
    name = f"9B {figure.weights} {figure.what} at {figure.tokens:,}"
    name += (f", {figure.rows} rows" if figure.rows > 1 else "") + _shared(figure.mesh)
    rows, mesh, limits = figure.rows, figure.mesh, figure.limits
    if figure.what == "decode":
        return name, roofline.decode_roofline(config, size, rows, mesh, limits, figure.tokens)
    return name, roofline.prefill_roofline(config, size, rows, figure.tokens, mesh, limits)


def _shared(mesh):
    return f", {mesh}" if mesh != _ONE_GPU else ""
