"""A study: models, a task, seeds and learning rates, and the runs that follow from them."""

import collections
import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from griffin_jax.config import DTYPES, GriffinConfig
from griffin_jax.fields import check_fields, check_value, check_values, field
from griffin_jax.studies.associative_recall import AssociativeRecall
from griffin_jax.studies.claims import check_claims, quantities_of
from griffin_jax.studies.induction import InductionHeads
from griffin_jax.studies.needle import Needle
from griffin_jax.studies.phonebook import Phonebook
from griffin_jax.studies.selective_copying import SelectiveCopying
from griffin_jax.studies.task import Task
from griffin_jax.studies.text import Text
from griffin_jax.training.optimizer import OptimizerConfig, learning_rate_schedule

# A row for each task that a study may name; a config file may add its own.
TASKS: dict[str, type] = {
    "selective_copying": SelectiveCopying,
    "induction_heads": InductionHeads,
    "associative_recall": AssociativeRecall,
    "phonebook": Phonebook,
    "needle": Needle,
    "text": Text,
}


# What a claim's quantity may be, and what stands behind the model and its variant; `report.lookup` says
# what each is.
_QUANTITIES = {
    "accuracy": "a test",
    "loss": "",
    "loss of": "a test",
    "loss over": "a model",
    "loss at step": "a step",
    "loss at": "a position",
    "steps to learn": "",
    "exponent": "",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """Changes to a study in the runs of a variant.

    Attributes:
      knobs: Fields of the task.
      base: Fields of `GriffinConfig`.
      run: Fields of `Schedule`.
    """

    knobs: dict[str, Any] = dataclasses.field(default_factory=dict)
    base: dict[str, Any] = dataclasses.field(default_factory=dict)
    run: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The length of a run and the examples of an update; `Plan` describes the last two fields.

    Attributes:
      steps: Updates.
      batch_size: Examples in an update.
      carried: Tokens before a row that are read first, in the last `carried_steps`.
      carried_steps: So many of the last updates.
    """

    steps: int = field(at_least=1, at_most=2**31 - 1)
    batch_size: int = field(at_least=1)
    carried: int = field(0, at_least=0)
    carried_steps: int = field(0, at_least=0)


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
      variants: By name, fields of `Variant`, such as one of several widths.
      learning_rates: Each model and variant keeps the one of the lowest held-out loss.
      seeds: Seeds of parameters and data.
      steps: Updates of a run.
      batch_size: Examples in an update.
      optimizer: Fields of `OptimizerConfig`; the learning rate is that of `learning_rates`.
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
    task: str = field(filled=True)
    knobs: dict[str, Any] = dataclasses.field(default_factory=dict)
    base: dict[str, Any] = dataclasses.field(default_factory=dict)
    models: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = dataclasses.field(default_factory=lambda: {"": {}})
    learning_rates: tuple[float, ...] = field((1e-3,), filled=True)
    seeds: tuple[int, ...] = field((0,), filled=True)
    steps: int = field(at_least=1)
    batch_size: int = field(64, at_least=1)
    optimizer: dict[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = field("float32", one_of=DTYPES)
    tests: tuple[dict[str, Any], ...] = ({},)
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
    claims: tuple[dict[str, Any], ...] = ()
    solved: float = field(0.05, above=0)

    def __post_init__(self):
        check_fields(self)
        # Asked here, since a user's file may add a row.
        check_value("task", self.task, str, one_of=tuple(TASKS))
        if not self.models or not self.variants:
            raise ValueError("models and variants must name one or more")
        for i, rate in enumerate(self.learning_rates):
            check_value(f"learning_rates[{i}]", rate, float, above=0)
        for i, seed in enumerate(self.seeds):
            check_value(f"seeds[{i}]", seed, int, at_least=0, below=2**31)
        check_claims(self.claims)
        for i, claim in enumerate(self.claims):
            for quantity in quantities_of(claim):
                self._check_quantity(f"claims[{i}]: the quantity {tuple(quantity)}", *quantity)
        optimizer = self.optimizer_config()
        for run in self.runs():
            for test in self.tests:
                run.task(test)
            run.model()
            learning_rate_schedule(optimizer, run.schedule()["steps"])
        for folder, count in collections.Counter(run.folder for run in self.runs()).items():
            if count > 1:
                raise ValueError(
                    f"{count} runs would share the file {folder}.json: names of models and variants "
                    "must differ in letters or digits, learning rates in their first six digits, and "
                    "seeds must not come twice"
                )

    def _check_quantity(self, name, what, *of):
        """Raises ValueError for what no run could tell, before any is trained."""
        check_value(f"{name} begins with what it is, which", what, str, one_of=tuple(_QUANTITIES))
        model, *rest = of or (None,)
        check_value(f"{name} goes on with a model, which", model, str, one_of=tuple(self.models))
        if what != "exponent" and set(self.variants) != {""}:
            variant, *rest = rest or (None,)
            known = tuple(self.variants)
            check_value(f"{name} has a variant behind it, which", variant, str, one_of=known)
        more = _QUANTITIES[what]
        if len(rest) != bool(more):
            raise ValueError(f"{name} must end with {more or 'nothing more'}, got {tuple(rest)}")
        if not more:
            return
        bounds: dict[str, Any] = {"at_least": 0}
        if more in ("a model", "a test"):
            known = self.models if more == "a model" else map(changes_in_words, self.tests)
            bounds = {"one_of": tuple(known)}
        kind = str if "one_of" in bounds else int
        check_value(f"{name} ends with {more}, which", rest[0], kind, **bounds)

    def optimizer_config(self) -> OptimizerConfig:
        """Returns the optimizer's settings but the learning rate, which is each run's own.

        Raises:
          ValueError: `optimizer` has an unknown field or a wrong value.
        """
        if "learning_rate" in self.optimizer:
            raise ValueError(
                "optimizer has a learning_rate; a study takes those in learning_rates instead"
            )
        return OptimizerConfig(**check_values(OptimizerConfig, self.optimizer, "optimizer."))

    def groups(self) -> Iterator["Group"]:
        """Yields the groups of runs that are trained together."""
        for variant, model in itertools.product(self.variants, self.models):
            runs = [
                Run(self, model, variant, float(rate), seed)
                for seed, rate in itertools.product(self.seeds, self.learning_rates)
            ]
            size = self.together or len(runs)
            for begin in range(0, len(runs), size):
                yield Group(tuple(runs[begin : begin + size]))

    def runs(self) -> Iterator["Run"]:
        """Returns the runs of all groups."""
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

    def schedule(self) -> dict[str, int]:
        """Returns the fields of `Schedule`.

        Raises:
          ValueError: the variant sets something else, or the values do not go together.
        """
        study = self.study
        values = {"steps": study.steps, "batch_size": study.batch_size} | self._otherwise("run")
        prefix = f"variants[{self.variant!r}].run."
        schedule = check_values(Schedule, values, prefix)
        carried, steps = schedule["carried"], schedule["carried_steps"]
        if bool(carried) != bool(steps) or steps > schedule["steps"]:
            raise ValueError(
                f"{prefix}carried {carried} and carried_steps {steps} must both be 0 or both be more, "
                f"and there are {schedule['steps']} steps in all"
            )
        return schedule

    def task(self, changes: Mapping[str, Any]) -> Task | Text:
        """Returns the task, with some knobs turned.

        Raises:
          ValueError: it has no such knob, or they do not go together.
        """
        study = self.study
        knobs = study.knobs | self._otherwise("knobs") | dict(changes)
        kind = TASKS[study.task]
        return kind(**check_values(kind, knobs, "knobs."))

    def model(self) -> GriffinConfig:
        """Returns the model's shape.

        Raises:
          ValueError: it has no such field, or they do not go together.
        """
        study = self.study
        fields = study.base | study.models[self.name] | self._otherwise("base")
        return GriffinConfig.from_dict({"vocab_size": self.task({}).vocab_size} | fields)

    def settings(self) -> dict[str, Any]:
        """Returns what a result depends on, as JSON has it."""
        kept = ("optimizer", "dtype", "tests", "test_rows")
        return json.loads(
            json.dumps(
                {"task": dataclasses.asdict(self.task({})), "model": self.model().to_dict()}
                | self.schedule()
                | {name: getattr(self.study, name) for name in kept}
            )
        )

    def _otherwise(self, part):
        """Returns what is otherwise in the run's variant."""
        fields = self.study.variants[self.variant]
        return check_values(Variant, fields, f"variants[{self.variant!r}].")[part]


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


def changes_in_words(test: Mapping[str, Any]) -> str:
    """Returns what a change of knobs is called."""
    return ", ".join(f"{name} {value}" for name, value in test.items()) or "as trained"
