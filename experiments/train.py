"""Trains a model, from scratch or from a checkpoint.

  python -m experiments.train --config=configs/train_tiny.py --run=runs/NAME

A checkpoint is --config.init_from=FOLDER. Training is in full or of a LoRA adapter, on text
or on conversations, as the config says. Writes checkpoints, metrics.jsonl, TensorBoard files and
loss.png into the run's folder, and when it ends, at the last step or before, model/ or adapter/.
Called again, it goes on where it stopped. Any field of the config is a flag: --config.steps=100
"""

import logging
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments import command, processes
from griffin_jax import checkpoints, training
from griffin_jax.config import GriffinConfig
from griffin_jax.paths import resolve
from griffin_jax.sharding import MeshShape, make_mesh
from griffin_jax.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from griffin_jax.training import chat, lora
from griffin_jax.training.data import Rows

_CONFIG = command.define_config("train", "train_tiny.py")
_RUN = flags.DEFINE_string("run", "runs/train", "Folder of the run.")
_CACHE = flags.DEFINE_string("cache", "runs/cache", "Folder of tokenized corpora.")
_MERGE = flags.DEFINE_bool("merge", False, "After LoRA, write model/ with the adapter merged in.")
flags.adopt_module_key_flags(processes)


def read_rows(files: str, kind: str, seq_len: int, seed: int, tokenizer: Tokenizer) -> Rows | None:
    """Returns rows of comma-separated text or token files, or of one chat file; None without a
    name.
    """
    if not files:
        return None
    if kind == "chat":
        conversations = chat.load_chat(files, tokenizer)
        rows = chat.ChatRows(conversations, seq_len, tokenizer.pad_id, files)
        print(
            f"{files}: {len(conversations):,} conversations in {len(rows):,} rows, "
            f"{len(rows.shortened)} cut to {seq_len} tokens, {len(rows.left_out)} left out because "
            "their answers begin later"
        )
        return rows
    corpus = training.load_corpus(files.split(","), tokenizer, _CACHE.value)
    rows = training.Windows(corpus, seq_len, seed)
    print(f"{files}: {len(corpus.tokens):,} tokens, {len(rows):,} sequences an epoch")
    return rows


def export(
    run: Path,
    config: training.TrainConfig,
    result: training.TrainResult,
    base: Any,
    tokenizer: Tokenizer,
) -> None:
    """Writes what was trained into the run's folder, in place of what an earlier call wrote."""
    params = result.params
    steps = f"{result.step:,} step{'s' * (result.step != 1)}"
    if config.lora:
        base_name = _CONFIG.value.init_from
        lora.save_adapter(
            run / "adapter", config.lora, params, base_name, config.model, replace=True
        )
        print(f"{run / 'adapter'}: the adapter after {steps}")
        if not _MERGE.value:
            return
        params = lora.merge(config.lora, params, base)
    checkpoints.save_checkpoint(
        run / "model", config.model, params, tokenizer=tokenizer, replace=True
    )
    print(f"{run / 'model'}: the model after {steps}")


def main() -> None:
    import grain  # noqa: F401, for an extra that is missing to be told before a model is loaded

    logging.getLogger("absl").setLevel(logging.WARNING)
    with training.hold_run(resolve(_RUN.value, "--run")) as run:
        _train(run)


def _train(run: Path) -> None:
    fields = _CONFIG.value.to_dict()
    tokenizer_folder, init_from, kind = map(fields.pop, ("tokenizer", "init_from", "data"))
    files = {name: fields.pop(name) for name in ("train", "heldout")}
    base = None
    mesh_shape = fields["mesh"] = MeshShape(**fields["mesh"])
    fields["optimizer"] = training.OptimizerConfig(**fields["optimizer"])
    if fields["lora"] is not None:
        fields["lora"] = lora.LoRAConfig(**fields["lora"])
    if init_from:
        # Under LoRA the base stays as it is stored; in full training it becomes master weights.
        dtype = "float32" if fields["lora"] is None else None
        checkpoint = checkpoints.load_checkpoint(
            init_from,
            dtype=dtype,
            mesh=make_mesh(**mesh_shape.sizes()),
        )
        base, fields["model"] = checkpoint.params, checkpoint.config
    elif fields["model"] is None:
        raise ValueError("give config.init_from, a model to begin with, or config.model, a shape")
    else:
        fields["model"] = GriffinConfig.from_dict(fields["model"])
    if not (tokenizer_folder or init_from):
        raise ValueError("give config.tokenizer, a folder with a tokenizer")
    config = training.TrainConfig(**fields)
    tokenizer = load_tokenizer(checkpoints.find_folder(tokenizer_folder or init_from))
    check_vocabulary(tokenizer, config.model)
    rows, heldout = (
        read_rows(files[name], kind, config.seq_len, config.seed, tokenizer)
        for name in ("train", "heldout")
    )
    if rows is None:
        raise ValueError("config.train names no file to train on")
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}")
    result = training.train(config, run, rows, heldout, base=base)
    if result.tokens_per_second:
        print(f"steady state: {result.tokens_per_second:,.0f} tokens/s")
    export(run, config, result, base, tokenizer)
    if not result.finished:
        print(f"stopped at step {result.step} of {config.steps}; the same command goes on")


if __name__ == "__main__":
    command.run(main)
