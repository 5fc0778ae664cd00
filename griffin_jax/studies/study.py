"""A study: models, trained on a task with several seeds, and what they get right in the end."""

import contextlib
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.benchmarks import memory
from griffin_jax.config import DTYPES, GriffinConfig
from griffin_jax.fields import check_fields, check_values, field
from griffin_jax.files import write_json
from griffin_jax.models import Griffin, abstract_params
from griffin_jax.studies.accuracy import accuracy
from griffin_jax.studies.associative_recall import AssociativeRecall
from griffin_jax.studies.claims import check_claims
from griffin_jax.studies.induction import InductionHeads
from griffin_jax.studies.phonebook import Phonebook
from griffin_jax.studies.selective_copying import SelectiveCopying
from griffin_jax.studies.task import Task
from griffin_jax.studies.text import Text
from griffin_jax.studies.together import Plan, keep_params, train_together
from griffin_jax.training import OptimizerConfig, hold_run
from griffin_jax.training.stop_signal import StopSignal

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
      variants: By name, "knobs" and "base" that are otherwise, such as one of several widths; and
        "run", which may have `steps`, `batch_size`, and `carried` and `carried_steps` of `Plan`.
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
      loss_chunks: Parts of a row whose logits exist at a time, for large vocabularies.
      together: Runs of a model that are one program, at most, as many as there are by default (0).
      measured: The results.json of `experiments.compare_training`, whose models are taken for those of
        the first variant, in place of training any.
      device: What those were trained on.
      counted: What an accuracy is of: "rows" without a wrong answer, or "tokens", single answers.
      law: "parameters" draws the held-out loss over the size of models, with a power law for each.
      claims: Statements to test; see `claims.check_claims` and `report.lookup`.
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
    loss_chunks: int = field(1, at_least=1)
    together: int = field(0, at_least=0)
    measured: str = ""
    device: str = ""
    counted: str = field("rows", one_of=("rows", "tokens"))
    law: str = field("", one_of=("", "parameters"))
    claims: tuple[Any, ...] = ()
    solved: float = field(0.05, above=0)

    def __post_init__(self):
        check_fields(self)
        if not self.models or not self.variants:
            raise ValueError("models and variants must name one or more")
        check_claims(self.claims)
        for run in self.runs():
            for test in self.tests:
                run.task(test)
            run.model()
            run.settings()

    def groups(self) -> Iterator["Group"]:
        """The groups of runs that are trained together."""
        for variant, model in itertools.product(self.variants, self.models):
            runs = [
                Run(self, model, variant, float(rate), seed)
                for seed, rate in itertools.product(self.seeds, self.learning_rates)
            ]
            size = self.together or len(runs)
            for begin in range(0, len(runs), size):
                yield Group(tuple(runs[begin : begin + size]))

    def runs(self) -> Iterator["Run"]:
        """The runs of all groups."""
        return itertools.chain.from_iterable(group.runs for group in self.groups())


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
        """A name for the run's files."""
        parts = (self.name, self.variant, f"{self.learning_rate:g}", f"seed{self.seed}")
        return "-".join(
            "".join(c if c.isalnum() or c == "." else "_" for c in p) for p in parts if p
        )

    def settings(self) -> dict[str, int]:
        """How long it is trained, and on what at a time.

        Raises:
          ValueError: the variant sets something else.
        """
        study = self.study
        known = {
            "steps": study.steps,
            "batch_size": study.batch_size,
            "carried": 0,
            "carried_steps": 0,
        }
        changes = _part(study.variants, self.variant, "run")
        if unknown := sorted(set(changes) - set(known)):
            raise ValueError(
                f"variants[{self.variant!r}].run has {unknown[0]!r}; it may have {', '.join(known)}"
            )
        return known | changes

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


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one model and variant, which are one program.

    Attributes:
      runs: They differ in seed and learning rate.
    """

    runs: tuple[Run, ...]

    @property
    def folder(self) -> str:
        """A name for the group's folder, that of its first run."""
        return self.runs[0].folder


def _part(variants, name, part):
    known = {"knobs", "base", "run"}
    if unknown := sorted(set(variants[name]) - known):
        raise ValueError(f"variants[{name!r}] has {unknown[0]!r}; it may have knobs, base and run")
    return dict(variants[name].get(part, {}))


def carry_out(
    study: Study,
    folder: Path,
    seconds: float | None = None,
    told: Callable[[str], None] = lambda _: None,
    part: tuple[int, int] = (1, 1),
) -> list[dict[str, Any]]:
    """Does the runs of a study that are not done yet, and goes on with those that were stopped.

    Args:
      study: The study.
      folder: Where each run has a file; what is done there is kept.
      seconds: Stop after so long, with a checkpoint, as on SIGTERM and Ctrl-C; None for no limit.
      told: Called of what is going on.
      part: K of N: do every Nth model of each variant from the Kth on, all its seeds and rates, for
        several processes that share the work.

    Returns:
      The results of all runs that are done, ready for JSON; and of those that were stopped, the
      curves so far, with the step where they were `stopped`.

    Raises:
      ValueError: a folder holds runs of other settings, or runs do not fit the device.
    """
    ends = math.inf if seconds is None else time.monotonic() + seconds
    results = []
    models = list(itertools.product(study.variants, study.models))
    with StopSignal() as stop:

        def over():
            return stop.requested or time.monotonic() >= ends

        for group in study.groups():
            place = folder / group.folder
            missing = [run for run in group.runs if not _file(folder, run).exists()]
            number = models.index((group.runs[0].variant, group.runs[0].name))
            if missing and number % part[1] == part[0] - 1 and not over():
                told(f"{group.folder}: begins or goes on")
                with hold_run(place), _fitting(group):
                    if _do(group, place, folder, over, told):
                        told(f"{group.folder}: done")
    for group in study.groups():
        place = folder / group.folder
        if all(_file(folder, run).exists() for run in group.runs):
            results += [_read(folder, run) for run in group.runs]
        elif (place / "curve.json").exists():
            results += _stopped(group, place)
    return results


@contextlib.contextmanager
def _fitting(group):
    """Says in one line that runs do not fit the device."""
    try:
        with memory.meeting_limits():
            yield
    except memory.OutOfMemory as error:
        raise ValueError(
            f"{group.folder}: {len(group.runs)} runs beside each other do not fit the device ({error}); "
            "give a smaller batch_size, fewer runs together, or shorter tests"
        ) from error


def _stopped(group, place):
    """What is known of runs that are not done: their curves so far."""
    _check_settings(place / "group.json", group)
    found = json.loads((place / "curve.json").read_text(encoding="utf-8"))
    return [
        {
            "model": run.name,
            "variant": run.variant,
            "learning_rate": run.learning_rate,
            "seed": run.seed,
            "stopped": found["steps"][-1],
            "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(shape)),
            "heldout_loss": found["losses"][-1][i],
            "curve": [[s, x[i]] for s, x in zip(found["steps"], found["losses"], strict=True)],
            "tests": {},
            "settings": _settings(run),
        }
        for i, run in enumerate(group.runs)
        for shape in [abstract_params(run.model())]
    ]


def _file(folder, run):
    return folder / f"{run.folder}.json"


def _read(folder, run):
    path = _file(folder, run)
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["settings"] != _settings(run):
        raise ValueError(
            f"{path} is of a run with other settings; give another --run folder, or delete it"
        )
    return found


def _do(group: Group, place: Path, folder: Path, over: Callable[[], bool], told: Callable) -> bool:
    study, first = group.runs[0].study, group.runs[0]
    plan = Plan(
        model=first.model(),
        task=first.task({}),
        optimizer=OptimizerConfig(**study.optimizer),
        **first.settings(),
        dtype=study.dtype,
        every=study.eval_every,
        save_every=study.checkpoint_every,
        heldout_rows=study.test_rows,
        loss_chunks=study.loss_chunks,
    )
    _check_settings(place / "group.json", group)
    seeds, rates = ([getattr(run, x) for run in group.runs] for x in ("seed", "learning_rate"))
    trained = train_together(plan, seeds, rates, place, over=over, told=told)
    if trained.step < plan.steps:
        return False
    began = time.monotonic()
    measured = _measure(group, plan, trained.params)
    seconds = (trained.seconds + time.monotonic() - began) / len(group.runs)
    steps, losses = trained.curve
    for i, run in enumerate(group.runs):
        curve = [[step, float(found[i])] for step, found in zip(steps, losses, strict=True)]
        finite = np.isfinite(curve[-1][1])
        write_json(
            _file(folder, run),
            {
                "model": run.name,
                "variant": run.variant,
                "learning_rate": run.learning_rate,
                "seed": run.seed,
                "parameters": sum(x[0].size for x in jax.tree.leaves(trained.params)),
                # None where training came to no number.
                "heldout_loss": curve[-1][1] if finite else None,
                "curve": [point for point in curve if np.isfinite(point[1])],
                "tests": {name: found[i] for name, found in measured.items()} if finite else {},
                "seconds": seconds,
                "device": jax.devices()[0].device_kind,
                "settings": _settings(run),
            },
            indent=None,
        )
    keep_params(place, trained)
    return True


def _check_settings(path: Path, group: Group) -> None:
    here = json.loads(json.dumps([[run.folder, _settings(run)] for run in group.runs]))
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != here:
        raise ValueError(
            f"{path} is of runs with other settings; give another --run folder, or delete it"
        )
    write_json(path, here, indent=None)


def _measure(group, plan, params):
    study, first = group.runs[0].study, group.runs[0]
    model = Griffin(plan.model, dtype=jnp.dtype(study.dtype))
    options = {"rows": study.test_rows, "batch_size": study.test_batch}
    return {
        changes_in_words(test): accuracy(model, params, first.task(test), **options)
        for test in study.tests
    }


def changes_in_words(test: Mapping[str, Any]) -> str:
    """What a change of knobs is called."""
    return ", ".join(f"{name} {value}" for name, value in test.items()) or "as trained"


def _settings(run: Run) -> dict[str, Any]:
    """What a result depends on, as JSON has it."""
    study = run.study
    kept = ("optimizer", "dtype", "tests", "test_rows")
    task = dataclasses.asdict(run.task({}))
    return json.loads(
        json.dumps(
            {"task": task, "model": run.model().to_dict()}
            | run.settings()
            | {x: getattr(study, x) for x in kept}
        )
    )
