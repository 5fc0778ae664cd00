"""Carries out a study of the papers on a small scale.

  python -m experiments.study --config=configs/study_selective_copying.py

Trains the study's models on its task with several seeds, times them, or looks into a model that is
there, and writes JSON, a page with a table, and plots. Runs that are done are kept and those that were
stopped go on where they were, so the same command continues; --minutes=9 stops in time. --list prints
the studies there are, and :tiny behind a config's name is one that takes seconds.
"""

import dataclasses
import json
import math
import sys
import time
from pathlib import Path

from absl import flags

from experiments import command, config_files, outputs, schemas
from griffin_jax import provenance, studies
from griffin_jax.benchmarks.machine import Limits, measure_limits
from griffin_jax.fields import check_values
from griffin_jax.files import write_json, write_text
from griffin_jax.models import Griffin
from griffin_jax.paths import make_folder, resolve
from griffin_jax.progress import Bar
from griffin_jax.studies import (
    claims,
    compared,
    long_answers_report,
    long_documents_report,
    memory_report,
    report,
    speed_report,
)
from griffin_jax.studies.together import read_params
from griffin_jax.text_files import read_json
from griffin_jax.training.corpus import read_documents
from griffin_jax.training.stop_signal import StopSignal

_CONFIG = command.define_config("study", "study_selective_copying.py")
_RUN = flags.DEFINE_string("run", "runs/studies", "Folder of the runs.")
_OUTPUT = flags.DEFINE_string("output", "docs/studies", "Folder for the page and its plots.")
_MINUTES = flags.DEFINE_float(
    "minutes", None, "Stop after so long; none by default.", lower_bound=0
)
_PART = flags.DEFINE_string(
    "part", "1/1", "K/N: do every Nth model from the Kth on, for N processes."
)
_LIST = flags.DEFINE_bool("list", False, "Print the studies there are, and what each is about.")
_PAGE = flags.DEFINE_bool("page", False, "Only write the page anew, from the JSON that is there.")
# Flags that say how long and beside which others, and nothing about what comes of it.
_WHEN = ("--minutes", "--part")
# What stands behind it on a page is a person's, and is kept when the page is written anew.
_SEEN = "## What is seen"


def main() -> None:
    if _LIST.value:
        for path in sorted(config_files.CONFIGS.glob("study_*.py")):
            print(f"configs/{path.name}: {config_files.read(path)['title']}")
        return
    fields = _CONFIG.value.to_dict()
    name, kind = fields.pop("name"), fields.pop("kind")
    folder = outputs.folder(_OUTPUT)
    path = folder / f"{name}.json"
    study, carry_out, judge, write = _KINDS[kind]
    study = study(fields)
    if _PAGE.value:
        found = read_json(path)
    else:
        arguments = [x for x in sys.argv[1:] if x.partition("=")[0] not in _WHEN]
        recorded = provenance.record("study", arguments)
        about = {"kind": kind, "title": fields["title"], "command": recorded["command"]}
        found = carry_out(study, name)
        if found is None:
            return
        found = about | {"recorded": recorded, "device": command.machine()} | found
    found["verdicts"] = judge(study, found)
    write_json(path, found, indent=None)
    page = folder / f"{name}.md"
    words = _words(page)
    written = write(name, study, found, folder)
    if words:
        write_text(page, page.read_text(encoding="utf-8").rstrip("\n") + "\n\n" + words)
    for file in (path, *written, *_summarize(folder)):
        print(file)


def _words(page):
    """Returns what somebody wrote at the end of a page, behind the heading `_SEEN`; "" for nothing."""
    if not page.exists():
        return ""
    _, heading, words = page.read_text(encoding="utf-8").partition(f"\n{_SEEN}\n")
    return heading.lstrip("\n") + words


def _summarize(folder):
    """Writes the verdicts of all studies whose JSON is in a folder, if there are any."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        if not path.with_suffix(".md").exists():
            continue  # somebody else's
        study = read_json(path)
        if study.get("verdicts"):
            found[path.stem] = study
    if not found:
        return []
    write_text(folder / "verdicts.md", claims.summary(found))
    return [folder / "verdicts.md"]


def _train(study, name):
    if study.measured:
        found = read_json(Path(study.measured))
        results = compared.results(found, next(iter(study.variants)))
        return {"device": study.device, "total": len(list(study.runs())), "results": results}
    runs = make_folder(resolve(_RUN.value, "--run") / name, "--run")
    seconds = None if _MINUTES.value is None else 60 * _MINUTES.value
    results = studies.carry_out(study, runs, seconds, told=_tell, part=_part())
    total = len(list(study.runs()))
    done = [result for result in results if "stopped" not in result]
    _tell(f"{len(done)} of {total} runs are done")
    if not done:
        return None
    devices = ", ".join(sorted({result["device"] for result in results if "device" in result}))
    return {"device": devices, "total": total, "results": results}


def _part():
    try:
        part, parts = map(int, _PART.value.split("/"))
    except ValueError:
        part = parts = 0
    if not 1 <= part <= parts:
        raise ValueError(f"--part {_PART.value!r} must be K/N with K from 1 to N, such as 2/3")
    return part, parts


def _memory_study(fields):
    own = {x: value for x, value in fields.items() if x not in ("model", "text", "title")}
    return studies.MemoryStudy(**own), fields["model"], fields["text"]


def _look(chosen, _):
    study, model, text = chosen
    lm = command.load_model(model, dtype="float32")
    rows = studies.memory.rows_of(read_documents(text), lm.tokenizer, study)
    began = time.monotonic()
    found = studies.memory.measure(lm, rows, study, lambda effect: _tell(f"{effect}"))
    return found | {"model": model, "seconds": time.monotonic() - began}


def _answer(study, _):
    name, _, size = study.study.partition(":")
    values = config_files.read(config_files.CONFIGS / name, size)
    values = check_values(schemas.study(values), values, "config.")
    folder = resolve(_RUN.value, "--run") / values.pop("name")
    values.pop("kind")
    trained = studies.Study(**values)
    models, task = {}, None
    for group in trained.groups():
        run = group.runs[0]
        if run.name not in study.models:
            continue
        shape, task = run.model(), run.task({})
        try:
            params = read_params(folder / group.folder, shape)
        except FileNotFoundError as error:
            first = f"carry out --config={study.study} first, with the same --run"
            raise FileNotFoundError(f"{error}; {first}") from error
        models[run.name] = Griffin(shape), params
    if not isinstance(task, studies.LongText) or set(models) != set(study.models):
        raise ValueError(
            f"config.study {study.study!r} must have the task phonebook or needle and the models "
            f"{', '.join(study.models)}"
        )
    rows = list(studies.long_documents.measure(study, task, models, _tell))
    return {"rows": rows, "seeds": list(trained.seeds)}


def _answer_lines(study, name):
    lines = studies.long_answers.read_lines(study.lines, study.limit)
    lm = command.load_model(study.model, dtype="float32")
    folder = make_folder(resolve(_RUN.value, "--run") / name, "--run")
    ends = math.inf if _MINUTES.value is None else time.monotonic() + 60 * _MINUTES.value
    with StopSignal() as stop, Bar(total=len(lines), desc="lines", unit="line") as bar:

        def over():
            return stop.requested or time.monotonic() >= ends

        answers = studies.long_answers.measure(study, lm, lines, folder, over)
        rows = []
        for row in answers:
            rows.append(row)
            bar.update()
    _tell(f"{len(rows)} of {len(lines)} lines are answered")
    return {"rows": rows, "total": len(lines)} if rows else None


def _time_steps(study, _):
    if study.measured:
        found = read_json(Path(study.measured))
        rows = studies.step_time.rows_of_benchmark(study, found)
        return {"device": _device(found["machine"]), "rows": rows}
    rows = []
    for row in studies.step_time.measure(study, _tell):
        _tell(f"{row}")
        rows.append(row)
    return {"rows": rows}


def _time_scans(study, _):
    if study.measured:
        found = read_json(Path(study.measured))
        rows = studies.scans.rows_of_benchmark(study, found)
        return {"device": _device(found["machine"]), "limits": found["limits"], "rows": rows}
    # On a CPU the limits say nothing that a scan comes near.
    limits = Limits(1e10, 1e11, 1e11) if study.seconds == 0 else measure_limits()
    return {"limits": limits.to_dict(), "rows": studies.scans.measure(study, limits, _tell)}


def _device(machine):
    return f"{machine['device']} ({machine['processor']}, {machine['cores']} cores)"


def _with_fields(write):
    def run(name, study, found, folder):
        fields = json.loads(json.dumps(dataclasses.asdict(study)))
        return write(name, fields | found, folder)

    return run


def _tell(text):
    print(f"[{text}]", file=sys.stderr, flush=True)


# For each kind: what its fields make, what carries that out, judges claims, and writes.
_KINDS = {
    "trained": (lambda fields: studies.Study(**fields), _train, report.verdicts, report.write),
    "memory": (
        _memory_study,
        _look,
        lambda study, found: [],
        lambda name, _, found, folder: memory_report.write(name, found, folder),
    ),
    "long_documents": (
        lambda fields: studies.LongDocumentsStudy(**fields),
        _answer,
        long_documents_report.verdicts,
        _with_fields(long_documents_report.write),
    ),
    "long_answers": (
        lambda fields: studies.LongAnswersStudy(**fields),
        _answer_lines,
        long_answers_report.verdicts,
        _with_fields(long_answers_report.write),
    ),
    "step_time": (
        lambda fields: studies.StepTimeStudy(**fields),
        _time_steps,
        speed_report.step_time_verdicts,
        _with_fields(speed_report.write_step_time),
    ),
    "scans": (
        lambda fields: studies.ScansStudy(**fields),
        _time_scans,
        speed_report.scan_verdicts,
        _with_fields(speed_report.write_scans),
    ),
}


if __name__ == "__main__":
    command.run(main)
