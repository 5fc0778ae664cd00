"""Carries out a study of the papers on a small scale.

  python -m experiments.study --config=configs/study_selective_copying.py

Trains the study's models on its task with several seeds, or looks into a model that is there, and
writes JSON, a page with a table, and plots. Runs that are done are kept and one that was stopped goes
on where it was, so the same command continues; --minutes=9 stops in time. --list prints the studies
there are, and :tiny behind a config's name is one that takes seconds.
"""

import sys
import time

from absl import flags

from experiments import command, config_files, outputs
from griffin_jax import studies
from griffin_jax.checkpoints import find_folder
from griffin_jax.files import write_json
from griffin_jax.loading import load
from griffin_jax.paths import make_folder, resolve
from griffin_jax.studies import memory_report, report
from griffin_jax.training.corpus import read_documents

_CONFIG = command.define_config("study", "study_selective_copying.py")
_RUN = flags.DEFINE_string("run", "runs/studies", "Folder of the runs.")
_OUTPUT = flags.DEFINE_string("output", "docs/studies", "Folder for the page and its plots.")
_MINUTES = flags.DEFINE_float(
    "minutes", None, "Stop after so long; none by default.", lower_bound=0
)
_LIST = flags.DEFINE_bool("list", False, "Print the studies there are, and what each is about.")


def main() -> None:
    if _LIST.value:
        for path in sorted(config_files.CONFIGS.glob("study_*.py")):
            print(f"configs/{path.name}: {config_files.read(path)['title']}")
        return
    fields = _CONFIG.value.to_dict()
    name, kind = fields.pop("name"), fields.pop("kind")
    folder = outputs.folder(_OUTPUT)
    said = " ".join(["python -m experiments.study", *(x for x in sys.argv[1:] if "config" in x)])
    for path in _KINDS[kind](name, fields, folder, said):
        print(path)


def _trained(name, fields, folder, said):
    study = studies.Study(**fields)
    runs = make_folder(resolve(_RUN.value, "--run") / name, "--run")
    seconds = None if _MINUTES.value is None else 60 * _MINUTES.value
    results = studies.carry_out(study, runs, seconds, told=_tell)
    total = len(list(study.runs()))
    _tell(f"{len(results)} of {total} runs are done")
    return report.write(name, study, results, folder, said, total) if results else []


def _memory(name, fields, folder, said):
    model, text, title = (fields.pop(x) for x in ("model", "text", "title"))
    study = studies.MemoryStudy(**fields)
    lm = load(find_folder(model), dtype="float32")
    rows = studies.memory.rows_of(read_documents(text), lm.tokenizer, study)
    began = time.monotonic()
    found = studies.memory.measure(lm, rows, study, lambda effect: _tell(f"{effect}"))
    found |= {"kind": "memory", "title": title, "model": model, "command": said}
    found |= {"device": command.machine(), "seconds": time.monotonic() - began}
    write_json(folder / f"{name}.json", found, indent=None)
    return [folder / f"{name}.json", *memory_report.write(name, found, folder)]


def _tell(text):
    print(f"[{text}]", file=sys.stderr, flush=True)


_KINDS = {"trained": _trained, "memory": _memory}


if __name__ == "__main__":
    command.run(main)
