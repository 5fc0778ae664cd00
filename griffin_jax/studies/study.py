"""A study: models, trained on a task with several seeds, and what they get right in the end."""

import dataclasses
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from griffin_jax.config import DTYPES, GriffinConfig
from griffin_jax.fields import check_fields, check_values, field
from griffin_jax.files import write_json
from griffin_jax.models import Griffin
from griffin_jax.sharding import MeshShape
from griffin_jax.studies.accuracy import accuracy
from griffin_jax.studies.associative_recall import AssociativeRecall
from griffin_jax.studies.induction import InductionHeads
from griffin_jax.studies.phonebook import Phonebook
from griffin_jax.studies.selective_copying import SelectiveCopying
from griffin_jax.studies.task import Task, TaskRows
from griffin_jax.studies.text import Text
from griffin_jax.training import OptimizerConfig, TrainConfig, train
from griffin_jax.training.run_log import read_metrics

# A row for each task that a study may name.
TASKS: dict[str, type] = {
    "selective_copying": SelectiveCopying,
    "induction_heads": InductionHeads,
    "associative_recall": AssociativeRecall,
    "phonebook": Phonebook,
    "text": Text,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that decides a study; the order of its runs is that of the fields.

    Attributes:
      title: What it is about.
      paper: What the paper did and says.
      shorter: What is run otherwise than in the paper, for captions.
      task: A key of `TASKS`.
      knobs: Fields of the task.
      base: Fields of `GriffinConfig` that the models share; the vocabulary is the task's.
      models: By name, the fields that each model has otherwise.
      variants: By name, "knobs" and "base" that are otherwise, such as one of several widths.
      learning_rates: Each model and variant keeps the one of the lowest held-out loss.
      seeds: Seeds of parameters and data.
      steps: Updates of a run.
      batch_size: Examples in an update.
      optimizer: Other fields of `OptimizerConfig`.
      dtype: The dtype of activations.
      tests: Changes of knobs under which accuracy is measured; {} for none.
      test_rows: Examples in each measurement.
      test_batch: Examples of a call there.
      eval_every: Updates between points of the curve of the held-out loss.
      checkpoint_every: Updates between checkpoints.
      solved: Held-out loss below which a task counts as learned, in nats per answer.
    """

    title: str = field(filled=True)
    paper: str = ""
    shorter: str = ""
    task: str = field(one_of=tuple(TASKS))
    knobs: dict[str, Any] = dataclasses.field(default_factory=dict)
    base: dict[str, Any] = dataclasses.field(default_factory=dict)
    models: dict[str, Any] = dataclasses.field(default_factory=dict)
    variants: dict[str, Any] = dataclasses.field(default_factory=lambda: {"": {}})
    learning_rates: tuple[float, ...] = field((1e-3,), filled=True)
    seeds: tuple[int, ...] = field((0,), filled=True)
    steps: int = field(at_least=1)
    batch_size: int = field(64, at_least=1)
    optimizer: dict[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = field("float32", one_of=DTYPES)
    tests: tuple[Any, ...] = ({},)
    test_rows: int = field(256, at_least=1)
    test_batch: int = field(64, at_least=1)
    eval_every: int = field(500, at_least=1)
    checkpoint_every: int = field(5000, at_least=1)
    solved: float = field(0.05, above=0)

    def __post_init__(self):
        check_fields(self)
        if not self.models or not self.variants:
            raise ValueError("models and variants must name one or more")
        for run in self.runs():
            for test in self.tests:
                run.task(test)
            run.model()

    def runs(self) -> Iterator["Run"]:
        """The runs, smallest parts of the study that can be done alone."""
        choices = (self.seeds, self.models, self.variants, self.learning_rates)
        for seed, model, variant, rate in itertools.product(*choices):
            yield Run(self, model, variant, float(rate), seed)


@dataclasses.dataclass(frozen=True)
class Run:
    """One model, trained once.

    Attributes:
      study: What it belongs to.
      name: The model's.
      variant: The variant's name.
      learning_rate: The peak.
      seed: The seed of parameters and data.
    """

    study: Study
    name: str
    variant: str
    learning_rate: float
    seed: int

    @property
    def folder(self) -> str:
        """A name for the run's folder."""
        parts = (self.name, self.variant, f"{self.learning_rate:g}", f"seed{self.seed}")
        return "-".join(
            "".join(c if c.isalnum() or c == "." else "_" for c in p) for p in parts if p
        )

    def task(self, changes: Mapping[str, Any]) -> Task | Text:
        """The task, with some knobs turned.

        Raises:
          ValueError: it has no such knob, or they do not go together.
        """
        study = self.study
        knobs = study.knobs | _part(study.variants, self.variant, "knobs") | dict(changes)
        kind = TASKS[study.task]
        return kind(**check_values(kind, knobs, "knobs."))

    def model(self) -> GriffinConfig:
        """The model's shape.

        Raises:
          ValueError: it has no such field, or they do not go together.
        """
        study = self.study
        fields = study.base | dict(study.models[self.name])
        fields |= _part(study.variants, self.variant, "base")
        return GriffinConfig.from_dict({"vocab_size": self.task({}).vocab_size} | fields)


def _part(variants, name, part):
    known = {"knobs", "base"}
    if unknown := sorted(set(variants[name]) - known):
        raise ValueError(f"variants[{name!r}] has {unknown[0]!r}; it may have knobs and base")
    return dict(variants[name].get(part, {}))


def carry_out(
    study: Study,
    folder: Path,
    seconds: float | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Does the runs of a study that are not done yet, and goes on with the one that was stopped.

    Args:
      study: The study.
      folder: Where each run has a folder; what is done there is kept.
      seconds: Stop after so long, with a checkpoint; None for no limit.
      told: Called of what is going on.

    Returns:
      The results of all runs that are done, ready for JSON.

    Raises:
      ValueError: a folder holds a run of other settings.
    """
    ends = None if seconds is None else time.monotonic() + seconds
    results = []
    for run in study.runs():
        result = folder / run.folder / "result.json"
        if not result.exists():
            left = None if ends is None else ends - time.monotonic()
            if left is not None and left <= 0:
                continue
            told(f"{run.folder}: begins or goes on")
            if not _do(run, folder / run.folder, result, left):
                continue
            told(f"{run.folder}: done")
        found = json.loads(result.read_text(encoding="utf-8"))
        if found["settings"] != _settings(run):
            raise ValueError(
                f"{result} is of a run with other settings; give another --run folder, or delete it"
            )
        results.append(found)
    return results


def _do(run: Run, folder: Path, result: Path, seconds: float | None) -> bool:
    study, task, shape = run.study, run.task({}), run.model()
    config = TrainConfig(
        model=shape,
        optimizer=OptimizerConfig(learning_rate=run.learning_rate, **study.optimizer),
        steps=study.steps,
        batch_size=study.batch_size,
        seq_len=task.length,
        dtype=study.dtype,
        seed=run.seed,
        log_every=study.eval_every,
        eval_every=study.eval_every,
        eval_batches=max(1, study.test_rows // study.batch_size),
        checkpoint_every=study.checkpoint_every,
        mesh=MeshShape(data=-1),
        max_seconds=seconds,
    )
    if isinstance(task, Text):
        rows, heldout = (task.windows(split, run.seed) for split in ("train", "heldout"))
    else:
        rows = TaskRows(task, run.seed, "train")
        heldout = TaskRows(task, run.seed, "heldout", study.test_rows)
    began = time.monotonic()
    trained = train(config, folder, rows, heldout)
    if not trained.finished:
        return False
    model = Griffin(shape, dtype=jnp.dtype(study.dtype))
    measured = {} if isinstance(task, Text) else _measure(run, model, trained.params)
    curve = [x for x in read_metrics(folder / "metrics.jsonl") if "heldout_loss" in x]
    write_json(
        result,
        {
            "model": run.name,
            "variant": run.variant,
            "learning_rate": run.learning_rate,
            "seed": run.seed,
            "parameters": sum(x.size for x in jax.tree.leaves(trained.params)),
            "heldout_loss": trained.heldout_loss,
            "curve": [[x["step"], x["heldout_loss"]] for x in curve],
            "tests": measured,
            "seconds": time.monotonic() - began,
            "device": jax.devices()[0].device_kind,
            "settings": _settings(run),
        },
        indent=1,
    )
    for name in ("checkpoints", "tensorboard"):  # of use to a run that goes on alone
        shutil.rmtree(folder / name, ignore_errors=True)
    return True


def _measure(run, model, params):
    study = run.study
    options = {"rows": study.test_rows, "batch_size": study.test_batch, "seed": run.seed}
    return {
        changes_in_words(test): accuracy(model, params, run.task(test), **options)
        for test in study.tests
    }


def changes_in_words(test: Mapping[str, Any]) -> str:
    """What a change of knobs is called."""
    return ", ".join(f"{name} {value}" for name, value in test.items()) or "as trained"


def _settings(run: Run) -> dict[str, Any]:
    """What a result depends on, as JSON has it."""
    study = run.study
    kept = ("steps", "batch_size", "optimizer", "dtype", "tests", "test_rows")
    task = dataclasses.asdict(run.task({}))
    return json.loads(
        json.dumps(
            {"task": task, "model": run.model().to_dict()} | {x: getattr(study, x) for x in kept}
        )
    )
