"""Compares trained models by their loss on held-out text.

  python -m experiments.compare_training --config=configs/compare_tiny.py

Measures the model of every run that the config names on held-out text: bits per byte of whole
documents, and loss by position beyond the length that it was trained on. Writes README.md,
results.json, loss.png, position.png and each run's metrics into the output folder. A run keeps what
was measured in its evaluation.json, which a second call, or another machine, reads in place of the
model.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

from absl import flags

from experiments import command, outputs

_CONFIG = command.define_config("compare_training", "compare_tiny.py")
_OUTPUT = flags.DEFINE_string("output", "runs/comparison", "Folder for the report.")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run and what was found of it.

    Attributes:
      name: What the report calls it.
      folder: The folder of the run.
      identity: What run.json says: the model's shape, batch size and sequence length.
      metrics: The lines of metrics.jsonl.
      evaluation: The result of `griffin_jax.training.evaluate.measure_texts`.
    """

    name: str
    folder: Path
    identity: dict[str, Any]
    metrics: list[dict[str, float]]
    evaluation: dict[str, Any]

    def last(self, metric: str) -> float:
        """Returns the metric's last value."""
        return [line[metric] for line in self.metrics if metric in line][-1]

    def summary(self) -> dict[str, Any]:
        """Returns the figures of the report, ready for JSON."""
        import jax

        from griffin_jax.config import GriffinConfig
        from griffin_jax.models import abstract_params
        from griffin_jax.training.flops import train_flops_per_token

        model = GriffinConfig.from_dict(self.identity["model"])
        rates = [line["tokens_per_second"] for line in self.metrics if "tokens_per_second" in line]
        return {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model))),
            "flops_per_token": train_flops_per_token(model, self.identity["seq_len"]),
            "tokens": self.last("tokens"),
            "tokens_per_second": sorted(rates)[len(rates) // 2] if rates else None,
            "training_loss": self.last("loss"),
            "heldout_loss": self.last("heldout_loss"),
            **self.evaluation,
        }


def main() -> None:
    from griffin_jax.plotting import pyplot

    pyplot()
    config, folder = _CONFIG.value, outputs.folder(_OUTPUT)
    runs = [open_run(text, config) for text in config.runs]
    write_report(folder, runs, config)


def open_run(text: str, config: Any) -> Run:
    """Reads the run of NAME=FOLDER, and measures its model unless that was done before.

    Raises:
      ValueError: the text is not of that form.
      FileNotFoundError: there is no such run, or it has trained nothing yet.
    """
    from griffin_jax.files import write_json
    from griffin_jax.paths import resolve
    from griffin_jax.text_files import read_json
    from griffin_jax.training.run_log import read_metrics

    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise ValueError(f"run {text!r} must be NAME=FOLDER, such as 'Griffin=runs/griffin-tiny'")
    folder = resolve(folder, f"run {name}")
    metrics = read_metrics(folder / "metrics.jsonl")
    if not any("heldout_loss" in line for line in metrics):
        raise FileNotFoundError(
            f"{folder}: no run with held-out loss there; train {name} first, or give other "
            "runs: --config.runs=\"('NAME=FOLDER', 'NAME=FOLDER')\""
        )
    identity = read_json(folder / "run.json")
    # Tuples are lists in JSON.
    settings = json.loads(
        json.dumps(
            {"step": metrics[-1]["step"], "text": Path(config.text).name}
            | {field: config[field] for field in ("edges", "dtype", "chunk", "cache")}
        )
    )
    path = folder / "evaluation.json"
    known = read_json(path) if path.exists() else {}
    if known.get("settings") != settings:
        print(f"[measuring {name}]", file=sys.stderr, flush=True)
        known = {"settings": settings, "found": _measure(folder / "model", config)}
        write_json(path, known)
    return Run(name, folder, identity, metrics, known["found"])


def _measure(model: Path, config: Any) -> dict[str, Any]:
    from griffin_jax import checkpoints
    from griffin_jax.tokenizer import load_tokenizer
    from griffin_jax.training import corpus, evaluate

    checkpoint = checkpoints.load_checkpoint(model)
    return evaluate.measure_texts(
        checkpoint.config,
        checkpoint.params,
        load_tokenizer(model),
        list(corpus.read_documents(config.text)),
        list(config.edges),
        dtype=config.dtype,
        chunk=config.chunk,
        cache=tuple(config.cache),
    )


def curves_by_position(runs: list[Run]) -> dict[str, list[dict[str, float]]]:
    """Measures the loss by position of every model, twice where the cache may slide or hold everything."""
    curves = {}
    for run in runs:
        sliding = run.evaluation.get("loss_by_position_sliding")
        curves[run.name if sliding is None else f"{run.name}, all in sight"] = run.evaluation[
            "loss_by_position"
        ]
        if sliding is not None:
            curves[f"{run.name}, sliding cache"] = sliding
    return curves


def write_report(folder: Path, runs: list[Run], config: Any) -> None:
    """Prints the tables and writes the report's files."""
    from griffin_jax import provenance
    from griffin_jax.files import new_file, write_json, write_text
    from griffin_jax.markdown import table

    summaries = {run.name: run.summary() for run in runs}
    rows = [
        [
            name,
            f"{s['parameters']:,}",
            f"{s['flops_per_token'] / 1e6:.0f}",
            f"{s['tokens'] / 1e6:.0f}",
            f"{s['tokens_per_second']:,.0f}" if s["tokens_per_second"] else "",
            f"{s['training_loss']:.3f}",
            f"{s['heldout_loss']:.3f}",
            f"{s['bits_per_byte']:.4f}",
        ]
        for name, s in summaries.items()
    ]
    head = ["model", "parameters", "MFLOP a token", "million tokens", "tokens/s"]
    head += ["training loss", "held-out loss", "bits per byte"]
    quality = table(head, rows, lined_up=True)

    curves = curves_by_position(runs)
    parts = next(iter(curves.values()))
    rows = [
        [
            f"{part['from']:,} to {part['to']:,}",
            *(f"{curve[i]['nats_per_token']:.3f}" for curve in curves.values()),
        ]
        for i, part in enumerate(parts)
    ]
    positions = table(["position", *curves], rows, lined_up=True)
    seq_len = runs[0].identity["seq_len"]
    low, high = config.cache[0], sum(config.cache) - 1
    page = f"""# {", ".join(summaries)}: the same size, the same tokens

{quality}

Losses are in nats per token; the held-out loss is of windows of {seq_len:,} tokens. Bits per UTF-8
byte are of {len(runs[0].evaluation["documents"])} whole documents of {Path(config.text).name}
({runs[0].evaluation["bytes"]:,} bytes), the state carried through each. A model of unbounded attention
reads them with a sliding cache: a token sees the last {low:,} to {high:,} tokens.

![loss over tokens](loss.png)

## Beyond the trained length

Mean loss in nats per token by position in pieces of {parts[-1]["to"]:,} tokens, each read from its
beginning; training saw {seq_len:,}.

{positions}

![loss by position](position.png)

{provenance.sentence(provenance.record("compare_training", sys.argv[1:]))}. results.json holds all figures, and the .jsonl files
what each run logged.
"""
    print(quality, positions, sep="\n\n")
    write_text(folder / "README.md", page)
    write_json(folder / "results.json", summaries)
    with new_file(folder / "loss.png") as file:
        plot_losses(file, runs)
    with new_file(folder / "position.png") as file:
        plot_positions(file, curves, seq_len)
    for run in runs:
        metrics = (run.folder / "metrics.jsonl").read_text(encoding="utf-8")
        write_text(folder / f"{run.name.lower()}.jsonl", metrics)
    print(f"{folder}: the report")


def plot_losses(file: BinaryIO, runs: list[Run]) -> None:
    """Plots the training loss, faint, and the held-out loss of every run over tokens."""
    from griffin_jax.plotting import pyplot

    figure, axis = pyplot().subplots(figsize=(7, 4.2), layout="constrained")
    for index, run in enumerate(runs):
        tokens_per_step = run.identity["batch_size"] * run.identity["seq_len"] / 1e6
        for metric, style in (("loss", {"alpha": 0.25}), ("heldout_loss", {"marker": "o"})):
            lines = [line for line in run.metrics if metric in line]
            axis.plot(
                [line["step"] * tokens_per_step for line in lines],
                [line[metric] for line in lines],
                color=f"C{index}",
                label=run.name if metric == "heldout_loss" else None,
                **style,
            )
    highest = max(x["heldout_loss"] for run in runs for x in run.metrics if "heldout_loss" in x)
    axis.set_ylim(top=highest + 0.3)  # the first steps would take all the room
    axis.set_xlabel("million tokens")
    axis.set_ylabel("nats per token (faint: training)")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(file, dpi=110, format="png")


def plot_positions(file: BinaryIO, curves: dict[str, list[dict[str, float]]], seq_len: int) -> None:
    """Plots the loss by position; beyond the dotted line no position was ever trained."""
    from griffin_jax.plotting import pyplot

    figure, axis = pyplot().subplots(figsize=(7, 4.2), layout="constrained")
    for name, curve in curves.items():
        axis.plot(
            [part["to"] for part in curve],
            [part["nats_per_token"] for part in curve],
            marker="o",
            label=name,
        )
    axis.axvline(seq_len, color="black", linestyle=":", label="trained length")
    axis.set_xscale("log", base=2)
    axis.set_xlabel("position (end of each part)")
    axis.set_ylabel("nats per token")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(file, dpi=110, format="png")


if __name__ == "__main__":
    command.run(main)
