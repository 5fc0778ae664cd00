"""Evaluates a model on the rows of the model card.

  python -m experiments.evaluate --config=configs/eval_quality.py --config.model=FOLDER
  python -m experiments.evaluate --config=configs/eval_safety.py --config.model=FOLDER
  python -m experiments.evaluate --config.tasks=hellaswag,piqa --config.limit=100

The config names rows, tasks and settings; configs/eval_quality.py, the default, explains each. Data
sets come from the Hub, or with --config.data_dir=DIR from JSON lines. Everything that can be checked
is checked before the model is loaded. Answers are kept as they come: the same command goes on where
it was stopped. Results go to a JSON file in --output, which `experiments.tables` makes tables of.
"""

import datetime
import importlib.metadata
import json
import logging
import os
import socket
import sys
import urllib.parse
from pathlib import Path

from absl import flags

from experiments import command, outputs, processes

_CONFIG = command.define_config("evaluate", "eval_quality.py")
_OUTPUT = flags.DEFINE_string("output", "runs/evaluation", "Folder for results and kept answers.")


def main() -> None:
    check_hub(_CONFIG.value.data_dir)
    try:
        import lm_eval
    except ImportError:
        raise ImportError(
            "evaluation needs lm-evaluation-harness: pip install 'griffin_jax[eval]'"
        ) from None
    import datasets
    import jax

    from griffin_jax.evaluation import harness, model, report, run, suites
    from griffin_jax.files import claim, write_json
    from griffin_jax.paths import make_folder
    from griffin_jax.sharding import is_first

    # After the imports: huggingface_hub sets its own level.
    for name in ("lm_eval", "datasets", "huggingface_hub", "griffin_jax", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    config = _CONFIG.value
    mesh = command.mesh_of(config.mesh)
    folder = outputs.folder(_OUTPUT)
    rows = suites.select(config.rows, config.tasks)
    name = file_name(config)
    options = run.Options(
        limit=config.limit,
        generation_limit=config.generation_limit,
        data_dir=config.data_dir,
        chat=config.chat,
        run_generated_code=config.run_generated_code,
        toxicity_scorer=config.toxicity_scorer,
        sentiment_scorer=config.sentiment_scorer,
        generations_dir=str(folder / f"{name}-texts"),
        only_named=bool(config.tasks),
    )
    model.check_tokenizer(config.model)
    if processes.is_first():
        claim(make_folder(folder) / f"{name}.json")
    runs, reasons = run.prepare(rows, options)
    for reason in reasons.values():
        note(f"left out: {reason}")
    if not runs:
        raise ValueError("there is nothing left to run")

    fingerprint = model.fingerprint(config.model)
    lm = harness.GriffinLM(
        config.model,
        quantization=config.quantization,
        dtype=config.dtype,
        stack_layers=config.stack_layers,
        mesh=mesh,
        batch_size=config.batch_size,
        max_length=config.max_length,
        max_gen_toks=config.max_gen_toks,
        gen_toks_cap=config.gen_toks_cap,
        fork=config.fork,
        seed=config.seed,
    )
    for prepared in runs.values():
        if line := run.tokens_cut(lm, prepared, options):
            note(line)
    setting = describe(config, lm, fingerprint)
    setting["lm_eval"] = lm_eval.__version__
    cache = folder / "answers" / kept_name(config, lm, fingerprint)
    if jax.process_count() > 1:
        cache = None  # processes stopped at different answers would ask different questions
    path, outcomes = folder / f"{name}.json", {}
    average = config.average if len(rows) == len(config.rows) else None
    for key, prepared in runs.items():
        outcomes[key] = outcome = run.execute(lm, prepared, options, cache)
        if not is_first():
            continue
        write_json(path, report.document(setting, rows, average, outcomes, reasons), default=str)
        if config.log_samples:
            write_samples(folder / f"{name}-samples", outcome)
        note(summary(prepared.task, outcome))
    if not is_first():
        return
    print(report.markdown([json.loads(path.read_text(encoding="utf-8"))]))
    print(f"{path}: the results")


def check_hub(data_dir: str | None) -> None:
    """Checks, before minutes of loading, that data sets can be had.

    Raises:
      FileNotFoundError: the folder of local data is not there.
      ValueError: they are to come from the Hub, and it does not answer.
    """
    if data_dir is not None:
        if not Path(data_dir).expanduser().is_dir():
            raise FileNotFoundError(f"--config.data_dir={data_dir}: there is no such folder")
        return
    proxied = any(name.lower() in ("https_proxy", "all_proxy") for name in os.environ)
    try:
        from huggingface_hub import constants
    except ImportError:  # which the extra brings, as is said below
        return
    if proxied or constants.HF_HUB_OFFLINE:
        return
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=5).close()
    except OSError as error:
        raise ValueError(
            f"data sets come from the Hub, and {address.hostname} does not answer ({error}): give "
            "--config.data_dir=DIR with JSON lines, or set HF_HUB_OFFLINE=1 where they are cached"
        ) from error


def describe(config, lm, fingerprint: str) -> dict:
    """Returns what has to be known of an evaluation to read or to repeat it."""
    import jax

    from griffin_jax import provenance
    from griffin_jax.evaluation import run

    quantization = lm.lm.quantization
    return {
        "suite": config.suite,
        "checkpoint": config.model,
        "fingerprint": fingerprint,
        "quantization": None if quantization is None else quantization.to_dict(),
        "dtype": lm.lm.dtype.name,
        "device": command.machine(),
        "devices": jax.device_count(),
        "mesh": dict(config.mesh),
        "jax": jax.__version__,
        "griffin_jax": importlib.metadata.version("griffin_jax"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "recorded": provenance.record("evaluate", sys.argv[1:]),
        "data": "the Hub" if config.data_dir is None else "local files",
        "seeds": run.SEEDS | {"texts": config.seed},
        **{
            name: config[name]
            for name in (
                *(
                    "limit",
                    "generation_limit",
                    "chat",
                    "batch_size",
                    "max_length",
                    "max_gen_toks",
                    "gen_toks_cap",
                ),
                *("fork", "toxicity_scorer", "sentiment_scorer"),
            )
        },
    }


def file_name(config) -> str:
    """Returns the name of the results: suite, model and precision, so that runs of several stand side by side."""
    model = Path(config.model.replace(":", "-")).name
    return "-".join(filter(None, (config.suite, model, config.quantization, config.dtype)))


def kept_name(config, lm, fingerprint: str) -> str:
    """Returns the key of the kept answers: all that an answer follows from besides the request."""
    quantization = lm.lm.quantization
    parts = (
        fingerprint.replace(":", "-")[:32],
        quantization and quantization.name,
        lm.lm.dtype.name,
        config.max_length and f"length{config.max_length}",
        f"new{config.max_gen_toks}",
        config.gen_toks_cap and f"cap{config.gen_toks_cap}",
        f"seed{config.seed}",
    )
    return "-".join(filter(None, parts))


def summary(task: str, outcome) -> str:
    """Returns a line on a run."""
    figures = outcome.figures
    rate = figures["questions"] / max(figures["seconds"], 1e-9)
    line = (
        f"{task}: {figures['questions']} questions in {figures['seconds']:.1f} s, {rate:.2f} a "
        f"second; {figures['tokens']:,} tokens read, {figures['tokens_alone']:,} without sharing"
    )
    if before := figures["requests_answered_before"]:
        line += f"; {before} of {figures['requests']} answers were there before"
    return line


def write_samples(folder: Path, outcome) -> None:
    """Writes a file of JSON lines for each task: every question, what was asked and what was answered."""
    from lm_eval.utils import handle_non_serializable

    from griffin_jax.files import write_text

    for task, samples in outcome.samples.items():
        lines = [json.dumps(sample, default=handle_non_serializable) for sample in samples]
        write_text(folder / f"{task}.jsonl", "\n".join(lines) + "\n")


def note(line: str) -> None:
    print(f"[{line}]", file=sys.stderr, flush=True)


if __name__ == "__main__":
    command.run(main)
