"""Measures what forking the state saves on 5-shot MMLU.

  python -m experiments.benchmark_forking --data_dir=DIR --model=FOLDER --output=FILE.json

Asks the same questions three times: with the examples of a subject read once and the state after them
forked for every question and choice; every choice by itself; and, with --hf, through the harness's
own adapter of transformers, on the CPU and with the weights in float32 for both, which reads a
question once for its one-token choices. Prints tokens,
seconds and questions a second of each, and the largest difference between their log-likelihoods.
Programs are compiled before the clock starts. The data are JSON lines,
DIR/mmlu/SUBJECT/{dev,test}.jsonl.

  --model=random:recurrentgemma-9b --quantization=nf4   a published shape with random weights
"""

import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags

from experiments import command, outputs

_MODEL = flags.DEFINE_string(
    "model", "griffin-tiny", "Folder or name of the model; or random:PRESET."
)
_DATA_DIR = flags.DEFINE_string("data_dir", "benchmarks", "Folder of the questions.")
_SUBJECTS = flags.DEFINE_integer("subjects", 57, "How many of MMLU's subjects.", lower_bound=1)
_LIMIT = flags.DEFINE_integer("limit", 4, "Questions of each subject.", lower_bound=1)
_QUANTIZATION = flags.DEFINE_enum(
    "quantization", None, ["nf4", "fp4", "int8"], "Pack linear weights."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "float16", "bfloat16"], "The dtype of activations."
)
_STACK_LAYERS = flags.DEFINE_bool(
    "stack_layers", None, "Run the layers in a loop, which compiles faster; see griffin_jax.load."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Texts that run together.", lower_bound=1)
_ALONE = flags.DEFINE_bool("alone", True, "Also read every choice by itself.")
_HF = flags.DEFINE_bool("hf", False, "Also ask the same model in transformers.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")

SHOTS = 5


def main() -> None:
    for name in ("lm_eval", "datasets", "griffin_jax"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not (Path(_DATA_DIR.value).expanduser() / "mmlu").is_dir():
        raise FileNotFoundError(
            f"--data_dir={_DATA_DIR.value}: no folder mmlu there; give one that holds "
            "mmlu/SUBJECT/dev.jsonl and test.jsonl"
        )
    try:
        from griffin_jax.evaluation.harness import GriffinLM
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'griffin_jax[eval]'") from None

    output = outputs.file(_OUTPUT)
    requests = mmlu_requests(_DATA_DIR.value, _SUBJECTS.value, _LIMIT.value)
    questions = len({id(request.doc) for request in requests})
    print(f"{questions} questions, {len(requests)} choices", file=sys.stderr)
    lm = GriffinLM(
        _MODEL.value,
        quantization=_QUANTIZATION.value,
        dtype=_DTYPE.value,
        stack_layers=_STACK_LAYERS.value,
        batch_size=_BATCH_SIZE.value,
    )
    model = unpacked(lm.lm) if _HF.value else lm.lm
    rows, answers = [], {}
    ways = [("forked", True)] + [("every choice by itself", False)] * _ALONE.value
    for name, fork in ways:
        adapter = GriffinLM(lm=model, batch_size=_BATCH_SIZE.value, fork=fork)
        begin = time.monotonic()
        adapter.loglikelihood(requests)  # compiles
        first = time.monotonic() - begin
        work = adapter.work.tokens, adapter.work.padded, adapter.work.calls
        begin = time.monotonic()
        answers[name] = adapter.loglikelihood(requests)
        seconds = time.monotonic() - begin
        rows.append(row(name, questions, seconds, first, *work))
    if _HF.value:
        seconds, first, answers["hf"] = ask_hf(model, requests)
        rows.append(row("transformers by the harness's hf", questions, seconds, first))
    content = report(rows, answers, model, count(lm, requests))
    if output is not None:
        from griffin_jax.files import write_json

        write_json(output, content)


def mmlu_requests(data_dir: str, subjects: int, limit: int) -> list:
    """Returns the log-likelihoods that 5-shot MMLU asks for."""
    from griffin_jax.evaluation.local_data import local_tasks

    group: Any = local_tasks(["mmlu"], data_dir, num_fewshot=SHOTS)["mmlu"]
    requests = []
    for task in sorted(group.get_all_tasks(), key=lambda task: task.task_name)[:subjects]:
        task.set_config("num_fewshot", SHOTS)
        task.build_all_requests(limit=limit)
        requests += task.instances
    return requests


def count(lm, requests) -> dict[str, int]:
    """Returns subjects, questions, and the tokens of each that are read once when states are
    forked.
    """
    from griffin_jax.inference import prefix_tree

    contexts = dict.fromkeys(request.args[0] for request in requests)
    nodes = prefix_tree.build([lm.tok_encode(context) for context in contexts])
    found = {"examples_tokens": 0, "questions_tokens": 0}
    while nodes:
        node = nodes.pop()
        nodes += node.children
        found["examples_tokens" if node.children else "questions_tokens"] += len(node.tokens)
    subjects = len({request.task_name for request in requests})
    return {"subjects": subjects, "questions": len(contexts), **found}


def unpacked(lm):
    """Returns the model in float32 and with the window as transformers has it: the query counts."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from griffin_jax.models import unstack_params
    from griffin_jax.weight import dequantized, is_weight

    params = jax.tree.map(
        lambda leaf: dequantized(leaf, jnp.float32),
        unstack_params(lm.config, lm.params),
        is_leaf=is_weight,
    )
    config = lm.config.replace(window_includes_query=True)
    return dataclasses.replace(
        lm, config=config, params=params, dtype=jnp.float32, quantization=None
    )


def ask_hf(lm, requests) -> tuple[float, float, list]:
    """Returns the seconds, seconds of a first question, and answers of the harness's own adapter."""
    import griffin_jax

    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ImportError(f"{error}: --hf takes pip install 'griffin_jax[parity]'") from None

    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        griffin_jax.save(lm, folder, format="huggingface")
        build: Any = HFLM  # whose registration hides its arguments
        model = build(
            pretrained=str(folder),
            device="cpu",
            dtype="float32",
            batch_size=_BATCH_SIZE.value,
            max_length=2**20,
        )
    begin = time.monotonic()
    model.loglikelihood(requests[:4])
    first = time.monotonic() - begin
    begin = time.monotonic()
    answers = model.loglikelihood(requests)
    return time.monotonic() - begin, first, answers


def row(name, questions, seconds, first, tokens=None, padded=None, calls=None) -> dict:
    return {
        "name": name,
        "seconds": seconds,
        "first_seconds": first,
        "questions_per_second": questions / seconds,
        "tokens": tokens,
        "tokens_padded": padded,
        "calls": calls,
    }


def report(rows, answers, lm, counts) -> dict:
    """Prints the table; returns the results, ready for JSON."""
    import numpy as np

    from griffin_jax import provenance
    from griffin_jax.benchmarks import forking_report

    first, *others = answers.items()
    differences = {}
    for name, found in others:
        pairs = zip(first[1], found, strict=True)
        differences[name] = float(np.abs(np.array([a[0] - b[0] for a, b in pairs])).max())
    precision = lm.dtype.name
    if lm.quantization is not None:
        precision = f"{lm.quantization.name.upper()} {precision}"
    layers = ", layers in a loop" if _STACK_LAYERS.value else ""
    setting = (
        f"{counts['questions']} questions of MMLU, {SHOTS}-shot; {_MODEL.value} in "
        f"{precision}{layers}, batches of up to {_BATCH_SIZE.value}, on {command.machine()}"
    )
    content = {
        "kind": forking_report.KIND,
        "setting": setting,
        "recorded": provenance.record("benchmark_forking", sys.argv[1:]),
        **counts,
        "rows": rows,
        "differences": differences,
    }
    print(forking_report.markdown(content))
    return content


if __name__ == "__main__":
    command.run(main)
