"""Measures what packing to 4 or 8 bits costs a trained model.

  python -m experiments.quantization_quality --config.model=FOLDER --text=FILE --output=FOLDER

Packs the model in every way that the config lists, and reads the text with each: bits per UTF-8 byte,
with the state carried through each document, and the mean Kullback-Leibler divergence from the model
before packing, token by token. Prints a table, and writes it as README.md with results.json and a
plot into the output folder. The text is a .txt or .jsonl file ("text" in every line), .xz or not.

--config.max_bytes=0 reads all of every document; the default, configs/quantization_quality.py, lists
all fields.
"""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any, BinaryIO

from absl import flags

from experiments import command, config_files, outputs

_CONFIG = command.define_config("quantization_quality", "quantization_quality.py")
_TEXT = flags.DEFINE_string("text", str(config_files.CARD), "File to read.")
_OUTPUT = flags.DEFINE_string("output", "runs/quantization_quality", "Folder for the report.")


@dataclasses.dataclass(frozen=True)
class Row:
    """One packing's figures.

    Attributes:
      name: What it is.
      quant_type: "nf4", "fp4" or "int8"; None before packing.
      double_quant: Whether its scales are quantized, too.
      block_size: Weights per scale; None before packing, and of 8 bits, which have a scale a row.
      bits_per_weight: Stored bits per linear weight.
      bits_per_byte: The bits per byte of the text.
      divergence: Mean nats per token, from the model before packing.
    """

    name: str
    quant_type: str | None
    double_quant: bool
    block_size: int | None
    bits_per_weight: float
    bits_per_byte: float
    divergence: float


def main() -> None:
    from griffin_jax.plotting import pyplot
    from griffin_jax.training import corpus

    pyplot()
    config, folder = _CONFIG.value, outputs.folder(_OUTPUT)
    check_packings(config.packings)
    texts = [_beginning(text, config.max_bytes) for text in corpus.read_documents(_TEXT.value)]
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError(f"--text={_TEXT.value} holds no text")
    lm = command.load_model(config.model, dtype=config.dtype)
    rows = measure(lm, stored_weights(config.model), texts, config)
    write_report(folder, rows, texts)


def check_packings(packings: Any) -> None:
    """Raises ValueError for what is no (type, whether scales are quantized, too, block size).

    Of 8 bits that is ("int8", False, None).
    """
    from griffin_jax.fields import check_value, shown
    from griffin_jax.quantization import FORMATS

    for i, packing in enumerate(packings):
        if not isinstance(packing, tuple | list) or len(packing) != 3:
            raise ValueError(
                f"config.packings[{i}] must be (type, double, block size), such as "
                f"('nf4', False, 64), got {shown(packing)}"
            )
        check_value(f"config.packings[{i}][0]", packing[0], str, one_of=tuple(FORMATS))
        check_value(f"config.packings[{i}][1]", packing[1], bool)
        if packing[0] == "int8":
            if tuple(packing[1:]) != (False, None):
                raise ValueError(
                    f"config.packings[{i}]: 8 bits have one scale a row: give ('int8', False, None), "
                    f"got {shown(packing)}"
                )
            continue
        sizes = tuple(2**power for power in range(5, 13))
        check_value(f"config.packings[{i}][2]", packing[2], int, one_of=sizes)


def stored_weights(checkpoint: str) -> dict[str, Any]:
    """Returns arrays of the model as they are stored, by path; packed ones as what they stand for."""
    from griffin_jax import checkpoints
    from griffin_jax.weight import is_weight

    leaves = checkpoints.open_checkpoint(checkpoint).leaves()
    return {path: leaf.dequantize() if is_weight(leaf) else leaf for path, leaf in leaves}


def measure(lm, weights: dict[str, Any], texts: list[str], config) -> list[Row]:
    """Returns the figures of the model as it is and of every packing of the config."""
    import jax.numpy as jnp
    import numpy as np
    from flax.traverse_util import unflatten_dict

    from griffin_jax import checkpoints
    from griffin_jax.checkpoints.huggingface_config import model_type
    from griffin_jax.quantization import PACKINGS
    from griffin_jax.training import evaluate
    from griffin_jax.weight import is_weight

    documents = [lm.tokenizer.encode(text, bos=True) for text in texts]
    num_bytes = sum(len(text.encode()) for text in texts)
    reference = unflatten_dict({p: jnp.asarray(w, config.dtype) for p, w in weights.items()}, "/")
    architecture, rows = model_type(lm.config), []
    for packing in (None, *config.packings):
        params, stored, size = reference, 0, 0
        if packing is not None:
            quant_type, double_quant, block_size = packing
            settings = PACKINGS[quant_type + ("-double" if double_quant else "")]
            values = {}
            for path, weight in weights.items():
                leaf = checkpoints.pack_leaf(
                    path,
                    weight,
                    settings,
                    architecture=architecture,
                    block_size=block_size or 64,
                )
                if is_weight(leaf):
                    stored, size = stored + leaf.nbytes, size + leaf.size
                    leaf = leaf.dequantize(config.dtype)
                values[path] = jnp.asarray(leaf, config.dtype)
            params = unflatten_dict(values, "/")
        figures = np.concatenate(
            evaluate.document_divergences(
                lm.config,
                reference,
                params,
                documents,
                dtype=config.dtype,
                chunk=config.chunk,
                rows=config.rows,
                capacity=config.capacity,
            )
        )
        losses, divergences = figures.T.astype(np.float64)
        rows.append(
            Row(
                *_describe(packing, weights),
                bits_per_weight=8 * stored / size if size else _stored_bits(weights),
                bits_per_byte=float(losses.sum()) / math.log(2) / num_bytes,
                divergence=float(divergences.mean()),
            )
        )
        print(f"[{rows[-1].name}: {rows[-1].bits_per_byte:.4f}]", file=sys.stderr, flush=True)
    return rows


def _describe(packing, weights):
    """Returns the name, type, double quantization and block size."""
    if packing is None:
        return weights["embedder/embedding"].dtype.name, None, False, None
    quant_type, double_quant, block_size = packing
    double = ", double quantized" if double_quant else ""
    scales = "a scale a row" if block_size is None else f"blocks of {block_size}{double}"
    return f"{quant_type.upper()}, {scales}", *packing


def _stored_bits(weights):
    return 8 * weights["embedder/embedding"].dtype.itemsize


def _beginning(text, max_bytes):
    return text.encode()[: max_bytes or None].decode(errors="ignore")


def write_report(folder: Path, rows: list[Row], texts: list[str]) -> None:
    """Prints the table and writes README.md, results.json and quality.png."""
    from griffin_jax import provenance
    from griffin_jax.files import new_file, write_json, write_text
    from griffin_jax.markdown import table

    base = rows[0]
    cells = [
        [
            row.name,
            f"{row.bits_per_weight:.2f}",
            f"{row.bits_per_byte:.4f}",
            f"{100 * (row.bits_per_byte / base.bits_per_byte - 1):+.2f}%" if row != base else "",
            f"{row.divergence:.4f}" if row != base else "",
        ]
        for row in rows
    ]
    head = ["linear weights", "bits per weight", "bits per byte", "change", "KL, nats per token"]
    figures = table(head, cells, lined_up=True)
    model, text = Path(_CONFIG.value.model).name, Path(_TEXT.value).name
    num_bytes = sum(len(text.encode()) for text in texts)
    setting = (
        f"{model} over {num_bytes:,} bytes of {text} ({len(texts)} document{'s' * (len(texts) != 1)}), activations in "
        f"{_CONFIG.value.dtype}, on {command.machine()}."
    )
    recorded = provenance.record("quantization_quality", sys.argv[1:])
    print(figures)
    print(setting)
    page = (
        "# What packing costs\n\n"
        f"{setting} {provenance.sentence(recorded)}. Embedding, gates and convolutions keep their bits."
        f"\n\n{figures}\n\n"
        "KL is the divergence of the packed model's next-token distribution from the first row's."
        "\n\n![bits per byte and divergence](quality.png)\n"
    )
    results = {
        "setting": setting,
        "recorded": recorded,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    write_text(folder / "README.md", page)
    write_json(folder / "results.json", results)
    with new_file(folder / "quality.png") as file:
        plot(file, rows)
    print(f"{folder}: the report")


def plot(file: BinaryIO, rows: list[Row]) -> None:
    """Plots bits per byte, and divergence, over stored bits per linear weight."""
    from griffin_jax.plotting import pyplot

    figure, axes = pyplot().subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    base, packed = rows[0], sorted(rows[1:], key=lambda row: row.bits_per_weight)
    kinds = dict.fromkeys((row.quant_type, row.double_quant) for row in packed)
    for axis, figure_of in zip(axes, ("bits_per_byte", "divergence"), strict=True):
        for quant_type, double in kinds:
            chosen = [r for r in packed if (r.quant_type, r.double_quant) == (quant_type, double)]
            x = [row.bits_per_weight for row in chosen]
            y = [getattr(row, figure_of) for row in chosen]
            label = quant_type.upper() + (", double quantized" if double else "")
            axis.plot(x, y, "o-", label=label)
            for row in chosen:
                spot = (row.bits_per_weight, getattr(row, figure_of))
                axis.annotate(
                    str(row.block_size or "row"), spot, (4, 4), textcoords="offset points"
                )
        axis.set_xlabel("bits per linear weight (numbers: block size)")
        axis.grid(alpha=0.3)
    axes[0].axhline(base.bits_per_byte, color="black", linestyle=":", label=base.name)
    axes[0].set_ylabel("bits per byte")
    axes[1].set_ylabel("KL, nats per token")
    axes[0].legend()
    figure.savefig(file, dpi=110, format="png")


if __name__ == "__main__":
    command.run(main)
