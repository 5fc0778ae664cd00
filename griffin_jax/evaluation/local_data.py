"""The harness's tasks over JSON lines in a folder, without any network.

    tasks = local_tasks(["mmlu", "griffin_triviaqa"], "benchmarks")
    lm_eval.simple_evaluate(model, tasks=list(tasks.values()))

Stock tasks and ours are built as the harness builds them, with their metrics, groups, versions and
prompts; only what would come from the Hub is read from `NAME/[CONFIG/]SPLIT.jsonl` in that folder
(`local_sources` has the layout). Every row is checked when it is read, so a broken file is told
before anything runs.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import lm_eval.tasks
import pyarrow
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from griffin_jax.evaluation.local_sources import SPLITS, Source, first_problem, source_of
from griffin_jax.evaluation.tasks import TASKS_PATH
from griffin_jax.paths import resolve
from griffin_jax.text_files import TextFile, find_json_lines

log = logging.getLogger(__name__)

# The folders of the harness that hold the model card's stock tasks: reading the names of all of its
# 14,000 takes a while.
_STOCK_FOLDERS = (
    *("mmlu/default", "hellaswag", "piqa", "siqa", "super_glue/boolq", "winogrande"),
    *("commonsense_qa", "openbookqa", "arc", "triviaqa", "nq_open", "humaneval", "mbpp", "gsm8k"),
    *("minerva_math", "agieval", "bbh/cot_fewshot", "realtoxicityprompts", "crows_pairs", "bbq"),
    *("winogender", "truthfulqa", "toxigen", "benchmarks"),
)
_NEEDS_NETWORK = {
    "humaneval": ("the metric code_eval from the Hub", "griffin_humaneval"),
    "mbpp": ("the metric code_eval from the Hub", "griffin_mbpp"),
    "realtoxicityprompts": ("the Perspective API", "griffin_realtoxicityprompts"),
}


class LocalDataError(ValueError):
    """A task or a file of the data folder that cannot serve: one line that says which and why."""


class MissingDataError(LocalDataError):
    """A task that needs files which the folder lacks, or what no folder can give it."""


def card_task_manager(metadata: dict | None = None) -> TaskManager:
    """Returns a task manager that knows our tasks and the card's stock ones, and is quick to
    make.
    """
    stock = Path(lm_eval.tasks.__file__).parent
    folders = [TASKS_PATH, *(stock / name for name in _STOCK_FOLDERS)]
    return TaskManager(
        include_path=[str(folder) for folder in folders],
        include_defaults=False,
        metadata=metadata,
    )


def local_tasks(
    task_names: Iterable[str],
    data_dir: str | Path,
    limit: int | None = None,
    *,
    num_fewshot: int | Mapping[str, int] | None = None,
    metadata: dict | None = None,
    task_manager: TaskManager | None = None,
) -> dict[str, Task | Group]:
    """Returns the tasks and groups by name, in the order asked for, over the files in `data_dir`.

    Args:
      task_names: Names of tasks and groups, the harness's and ours.
      data_dir: The folder of JSON lines.
      limit: Keeps the first so many rows of every file of questions; None keeps all. All rows are
        checked, and examples are drawn from whole files.
      num_fewshot: The number of examples that will be asked for, if not the task's own, for all tasks
        or by task; used only to check that there are enough.
      metadata: Options of our tasks; see `griffin_jax.evaluation.tasks`.
      task_manager: Where the names are looked up; by default among the card's tasks, see
        `card_task_manager`.

    Raises:
      MissingDataError: (a LocalDataError) a task needs the network, or a file that is missing.
      LocalDataError: a task is unknown, a row lacks a field (file, line and field are named), or
        there are too few rows to draw examples from.
    """
    data_dir = resolve(data_dir, "data_dir")
    if not data_dir.is_dir():
        raise LocalDataError(f"data_dir {data_dir}: no such folder")
    manager = task_manager or card_task_manager(metadata)
    names = list(task_names)
    for name in names:
        _check_name(name, manager)
    reader = _Reader(data_dir, limit)
    tasks: dict[str, Task | Group] = {}
    with mock.patch.object(datasets, "load_dataset", reader.load_dataset):
        for name in names:
            tasks.update(_build(name, manager, data_dir))
    shots = num_fewshot if isinstance(num_fewshot, Mapping) else dict.fromkeys(names, num_fewshot)
    for name, task in tasks.items():
        for leaf in task.get_all_tasks() if isinstance(task, Group) else [task]:
            _check_examples(leaf, shots.get(name), data_dir)
    return tasks


def _check_name(name: str, manager: TaskManager) -> None:
    if name not in manager.task_index:
        raise LocalDataError(f"task {name!r} is unknown")
    if name in _NEEDS_NETWORK:
        what, ours = _NEEDS_NETWORK[name]
        raise MissingDataError(
            f"task {name!r} needs {what}, so it cannot run from local files; {ours} can"
        )


def _build(name: str, manager: TaskManager, data_dir: Path) -> dict[str, Task | Group]:
    entry: Any = manager.task_index[name]
    members = entry.cfg["task"] if entry.kind.name == "GROUP" else []
    absent = [member for member in members if _is_absent(member, manager, data_dir)]
    if absent:
        log.warning("%s: left out, for their files are not in %s: %s", name, data_dir, absent)
        present = [member for member in members if member not in absent]
        group = Group.from_config({**entry.cfg, "task": present})
        for member in present:
            group.add(manager.load(member)["tasks"][member])
        return {name: group}
    loaded: Any = manager.load(name)
    return {name: loaded["groups"][name]} if name in loaded["groups"] else loaded["tasks"]


def _is_absent(member, manager: TaskManager, data_dir: Path) -> bool:
    """Returns whether a group's member reads files that may be missing, and are."""
    entry = manager.task_index.get(member) if isinstance(member, str) else None
    if entry is None or not entry.cfg or "dataset_path" not in entry.cfg:
        return False
    source = source_of(entry.cfg["dataset_path"], entry.cfg.get("dataset_name"))
    return bool(source and source.optional and not (data_dir / source.folder).is_dir())


def _check_examples(task: Any, wanted: int | None, data_dir: Path) -> None:
    own = task.config.num_fewshot
    # A task whose own number is 0 keeps it, as the harness has it.
    count = own if wanted is None or own == 0 else wanted
    if not count or task.fewshot_cfg.samples is not None:
        return
    # Where these are equal, None included, the harness draws one more and drops the question's own.
    spare = 1 if task.fewshot_cfg.split == task.config.test_split else 0
    found = len(task.sampler.df)
    if found < count + spare:
        source = source_of(task.config.dataset_path, task.config.dataset_name)
        split = task.fewshot_cfg.split or source.pool
        file = _file(_folder(source, task.config.dataset_name, data_dir), split)
        state = f"has {found} of them" if file.is_file() else "is missing"
        error = LocalDataError if file.is_file() else MissingDataError
        raise error(
            f"{file}: {state}, and {task.task_name} with {count} examples needs {count + spare} rows"
        )


def _folder(source: Source, name: str | None, data_dir: Path) -> Path:
    return data_dir / source.folder.format(name=name)


def _file(folder: Path, split: str) -> Path:
    return find_json_lines(folder, split, LocalDataError)


class _Reader:
    """Stands in for `datasets.load_dataset`."""

    def __init__(self, data_dir: Path, limit: int | None):
        self.data_dir, self.limit = data_dir, limit

    def load_dataset(self, path: str, name: str | None = None, **_) -> datasets.DatasetDict:
        source = source_of(path, name)
        if source is None:
            title = f"{path} ({name})" if name else path
            raise MissingDataError(f"no local files are known for the data set {title}")
        folder = _folder(source, name, self.data_dir)
        main = _file(folder, source.evaluated)
        if not main.is_file():
            raise MissingDataError(f"{main}: no such file; it stands for the data set {path}")
        splits = {}
        for split in SPLITS:
            if (file := _file(folder, split)).is_file():
                rows = _rows(file, source)
                keep = self.limit if split == source.evaluated != source.pool else None
                splits[split] = _dataset(file, rows[:keep])
        # The harness lists the examples of every task, also of one that is asked without any.
        nothing = splits[source.evaluated].select([])
        return datasets.DatasetDict({split: splits.get(split, nothing) for split in SPLITS})


def _rows(file: Path, source: Source) -> list[dict]:
    rows = []
    lines = TextFile(file, error=LocalDataError)
    for number, row in lines.records():
        if problem := first_problem(row, source.fields):
            raise lines.fault(problem, number)
        if all(row[key] == value for key, value in source.only.items()):
            rows.append(row)
    if not rows:
        raise LocalDataError(f"{file}: no rows")
    return rows


def _dataset(file: Path, rows: list[dict]) -> datasets.Dataset:
    try:
        return datasets.Dataset.from_list(rows)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        line = str(error).splitlines()[0]
        raise LocalDataError(f"{file}: rows of different types: {line}") from None
