"""Running the rows of a suite: everything that can be checked is checked before the first request."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import CachingLM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from griffin_jax.evaluation import local_data
from griffin_jax.evaluation.harness import GriffinLM, describe_cut
from griffin_jax.evaluation.scorers import ScorerError
from griffin_jax.evaluation.suites import GENERATED_CODE, UNGUARDED_CODE, Measure, Row
from griffin_jax.evaluation.tasks import TASKS_PATH
from griffin_jax.progress import Bar

# The harness's own, which the published results of others have.
SEEDS = {"random": 0, "numpy": 1234, "examples": 1234}
# Rounds for standard errors of figures that are no means.
_BOOTSTRAP = 1000


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of loading and running tasks; the fields are those of configs/eval_quality.py.

    Attributes:
      limit: Questions of each task; None for all.
      generation_limit: The same of tasks whose answers are written; None is `limit`.
      data_dir: Folder of JSON lines to read instead of the Hub.
      chat: Prompts are turns.
      run_generated_code: Run programs that the model writes.
      toxicity_scorer: Who judges toxicity.
      sentiment_scorer: Who judges sentiment.
      generations_dir: Where written texts go.
      only_named: The rows were named one by one: what cannot run is an error, not a note.
    """

    limit: int | None = None
    generation_limit: int | None = None
    data_dir: str | None = None
    chat: bool = False
    run_generated_code: bool = False
    toxicity_scorer: str = "perspective"
    sentiment_scorer: str = "vader"
    generations_dir: str | None = None
    only_named: bool = False

    def __post_init__(self):
        for name in ("limit", "generation_limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 question, got {value}")

    def limit_of(self, run: "Run") -> int | None:
        """Returns the number of questions of each task of a run; None for all."""
        if self.generation_limit is not None and run.writes:
            return self.generation_limit
        return self.limit


@dataclasses.dataclass
class Run:
    """A task that is ready to run.

    Attributes:
      task: Its name.
      shots: Examples in a prompt, where the suite says how many.
      loaded: What the harness made of it: its tasks and groups.
    """

    task: str
    shots: int | None
    loaded: dict[str, Any]

    @property
    def writes(self) -> bool:
        """True if the model writes its answers, rather than choosing among given ones."""
        return any(task.OUTPUT_TYPE == "generate_until" for task in self.loaded["tasks"].values())


def prepare(rows: Sequence[Row], options: Options) -> tuple[dict, dict[tuple, str]]:
    """Loads data sets and builds a first prompt of every task, before any model is loaded.

    Args:
      rows: What to measure.
      options: How.

    Returns:
      A `Run` for each `Measure.run`, and why the others cannot run.

    Raises:
      ValueError: a task is unknown, its data cannot be had or are broken, or a scorer is not there;
        what only concerns a part of a suite is a reason instead, unless its rows were named.
    """
    runs, reasons = {}, {}
    manager = _manager(options) if options.data_dir is None else None
    measures = {measure.run: measure for row in rows for measure in row.measures}
    with Bar(measures.values(), desc="data sets") as bar:
        for measure in bar:
            bar.set_postfix_str(measure.task)
            try:
                check_allowed(measure, options)
                try:
                    run = _load(measure, options, manager)
                except ImportError as error:
                    line = " ".join(str(error).split())
                    raise CannotRun(f"{measure.task} needs a package: {line}") from error
            except CannotRun as error:
                if options.only_named:
                    raise ValueError(str(error)) from error
                reasons[measure.run] = str(error)
                continue
            if options.data_dir is not None:
                _check_values(run, options.limit_of(run))
            _check_first_prompts(run)
            runs[measure.run] = run
    return runs, reasons


class CannotRun(Exception):
    """A task that the rest of a suite can do without: one line that says why it is left out."""


def check_allowed(measure: Measure, options: Options) -> None:
    """Raises CannotRun for a task that runs programs, where that was not allowed."""
    if measure.needs and not options.run_generated_code:
        raise CannotRun(
            f"{measure.task} runs programs that the model writes: allow it with "
            f"--{GENERATED_CODE}=true"
        )
    if measure.needs == UNGUARDED_CODE and os.environ.get(UNGUARDED_CODE) != "1":
        raise CannotRun(
            f"{measure.task} runs programs outside of our sandbox: allow it with the environment "
            f"variable {UNGUARDED_CODE}=1, or use griffin_{measure.task}"
        )


def _metadata(options):
    values = {
        "toxicity_scorer": options.toxicity_scorer,
        "sentiment_scorer": options.sentiment_scorer,
        "generations_dir": options.generations_dir,
    }
    return {name: value for name, value in values.items() if value is not None}


def _manager(options):
    return TaskManager(include_path=str(TASKS_PATH), metadata=_metadata(options))


def _load(measure, options, manager):
    name, shots = measure.run
    if options.data_dir is None:
        loaded = _from_hub(name, manager)
    else:
        try:
            found = local_data.local_tasks(
                [name], options.data_dir, num_fewshot=shots, metadata=_metadata(options)
            )
        except local_data.MissingDataError as error:
            raise CannotRun(str(error)) from error
        loaded = TaskManager(include_defaults=False).load(list(found.values()))
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (shots is not None and own != 0):  # as the harness's command has it
            task.set_config(key="num_fewshot", value=shots or 0)
    return Run(name, shots, loaded)


def _from_hub(name, manager):
    if name not in manager.task_index:
        raise ValueError(f"lm-evaluation-harness has no task {name!r}")
    try:
        return manager.load([name])
    except (ImportError, ScorerError):
        raise
    except Exception as error:  # of the network, of `datasets` or of a task's own code
        line = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name}: its data set cannot be loaded from the Hub ({type(error).__name__}: {line}); "
            "--config.data_dir=DIR reads JSON lines instead"
        ) from error


def _check_values(run, limit):
    """Has every question say what it asks and which choice is right; files may hold anything."""
    for name, task in run.loaded["tasks"].items():
        for number, doc in task.doc_iterator(limit=limit):
            try:
                text, target = task.doc_to_text(doc), task.doc_to_target(doc)
                problem = None
                if task.OUTPUT_TYPE == "multiple_choice":
                    choices = task.doc_to_choice(doc)
                    right = text if task.multiple_input else target
                    problem = _no_choice(right, choices)
            except Exception as error:  # whatever a template meets in values that it cannot take
                line = " ".join(str(error).split())[:200]
                problem = f"no prompt can be built of it ({type(error).__name__}: {line})"
            if problem:
                raise ValueError(f"{name}, question {number + 1} of its file: {problem}")


def _no_choice(right, choices):
    """Returns why what is said to be right is none of the choices; None if it is one."""
    for one in right if isinstance(right, list) else [right]:
        there = 0 <= one < len(choices) if isinstance(one, int | np.integer) else one in choices
        if not there:
            return f"the right choice is {one!r:.100}, which is none of its {len(choices)}"
    return None


def _check_first_prompts(run):
    for name, task in run.loaded["tasks"].items():
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # a bar for each task
                task.build_all_requests(limit=1, rank=0, world_size=1)
        except Exception as error:  # whatever a template meets in a row that lacks something
            line = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{name}: no prompt can be built of its first question ({type(error).__name__}: "
                f"{line}); the data set is not of the form that the task expects"
            ) from error


@dataclasses.dataclass
class Outcome:
    """The results of a run.

    Attributes:
      results: The harness's results by task and group.
      versions: The versions of the tasks, by name.
      samples: What was asked and answered, by task.
      figures: Questions, requests, seconds, tokens and the like.
    """

    results: dict[str, dict[str, Any]]
    versions: dict[str, Any]
    samples: dict[str, list]
    figures: dict[str, Any]


def tokens_cut(lm: GriffinLM, run: Run, options: Options) -> str:
    """Returns a line on what `max_length` takes from prompts, before any is asked; empty if it is
    nothing.

    Raises:
      ValueError: `max_length` has no room for what a request needs beside its prompt.
    """
    if lm.max_length is None:
        return ""
    for task in run.loaded["tasks"].values():
        task.set_fewshot_seed(seed=SEEDS["examples"])
        with contextlib.redirect_stderr(io.StringIO()):
            task.build_all_requests(limit=options.limit_of(run), **_turns(lm, options))
    requests = _requests(run)
    if line := describe_cut(lm.max_length, lm.tokens_cut(requests), len(requests)):
        return f"{run.task}: {line}"
    return ""


def _turns(lm, options):
    """Returns more arguments of the harness's `build_all_requests`."""
    if not options.chat:
        return {}
    return {
        "apply_chat_template": True,
        "fewshot_as_multiturn": True,
        "chat_template": lm.apply_chat_template,
    }


def _requests(run):
    return [one for task in run.loaded["tasks"].values() for one in task.instances]


def execute(lm: GriffinLM, run: Run, options: Options, cache: Path | None = None) -> Outcome:
    """Runs a task.

    Args:
      lm: The model.
      run: The task.
      options: How.
      cache: File that keeps every answer as it comes, without its ending "_rank0.db"; answers that
        are there already are not asked for again. It belongs to one model.
    """
    caching = None if cache is None else CachingLM(lm, f"{cache}_rank0.db")
    before, answered = dataclasses.replace(lm.work), lm.answered
    random.seed(SEEDS["random"])
    np.random.seed(SEEDS["numpy"])  # noqa: NPY002, tasks of the harness draw from it
    for task in run.loaded["tasks"].values():
        task.set_fewshot_seed(seed=SEEDS["examples"])
    begin = time.monotonic()
    found: Any = evaluate(
        lm=lm if caching is None else caching,
        task_dict=run.loaded,
        limit=options.limit_of(run),
        bootstrap_iters=_BOOTSTRAP,
        confirm_run_unsafe_code=options.run_generated_code,
        apply_chat_template=options.chat,
        fewshot_as_multiturn=options.chat,
    )
    seconds = time.monotonic() - begin
    if caching is not None:
        caching.dbdict.close()
    requests = _requests(run)
    asked = sum(request.repeats or 1 for request in requests)
    cut = lm.tokens_cut(requests)
    questions = sum(one["effective"] for one in found["n-samples"].values())
    figures = {
        "limit": options.limit_of(run),
        "questions": questions,
        "requests": len(requests),
        "requests_answered_before": asked - (lm.answered - answered),
        "requests_sha256": hash_requests(requests),
        "seconds": seconds,
        "tokens": lm.work.tokens - before.tokens,
        "tokens_padded": lm.work.padded - before.padded,
        "tokens_alone": lm.work.alone - before.alone,
        "prompts_cut": len(cut),
        "tokens_cut_at_most": max(cut, default=0),
    }
    results = {**found["results"], **found.get("groups", {})}
    return Outcome(results, found["versions"], found["samples"], figures)


def hash_requests(requests: Sequence) -> str:
    """Returns SHA-256, in hex, of what the model is asked, in order: prompts, choices and
    settings.
    """
    digest = hashlib.sha256()
    for request in requests:
        digest.update(json.dumps(request.args, sort_keys=True).encode())
    return digest.hexdigest()
