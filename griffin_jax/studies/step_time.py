"""The time of a training step over the length of its sequences, tokens a batch fixed (figure 3)."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from griffin_jax.benchmarks.training import Bench, Variant
from griffin_jax.config import DTYPES, GriffinConfig
from griffin_jax.fields import check_fields, check_value, field
from griffin_jax.studies.claims import check_claims
from griffin_jax.training.train_step import data_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTimeStudy:
    """Settings.

    Attributes:
      title: What it is about.
      paper: What the paper did and says.
      shorter: What is run otherwise than in the paper, for captions.
      base: Fields of `GriffinConfig` that the models share.
      models: By name, the fields that each model has otherwise.
      compared_with: The model whose time at the first length all times are relative to.
      lengths: Tokens of a sequence.
      tokens: In a batch, the same at every length.
      memory: How a step spends memory; see `benchmarks.training.Variant.parse`.
      dtype: The dtype of activations.
      repeats: Steps that are timed.
      measured: A JSON file of `experiments.benchmark` on training, of one model, whose rows are taken
        in place of timing any.
      paper_ratios: By model and length, what the paper found.
      claims: Statements to test; see `claims.check_claims` and `speed_report`.
    """

    title: str = field(filled=True)
    paper: str = ""
    shorter: str = ""
    base: dict[str, Any] = dataclasses.field(default_factory=dict)
    models: dict[str, Any] = dataclasses.field(default_factory=dict)
    compared_with: str = field("Griffin", filled=True)
    lengths: tuple[int, ...] = field((2048, 4096), filled=True)
    tokens: int = field(32_768, at_least=1)
    memory: str = field("none:1:1", filled=True)
    dtype: str = field("bfloat16", one_of=DTYPES)
    repeats: int = field(6, at_least=1)
    measured: str = ""
    paper_ratios: dict[str, Any] = dataclasses.field(default_factory=dict)
    claims: tuple[Any, ...] = ()

    def __post_init__(self):
        check_fields(self)
        check_claims(self.claims)
        Variant.parse(self.memory)
        for i, length in enumerate(self.lengths):
            check_value(f"lengths[{i}]", length, int, at_least=1)
            if self.tokens % length:
                raise ValueError(
                    f"length {length} does not divide the {self.tokens} tokens of a batch"
                )
        if self.compared_with not in self.models:
            raise ValueError(
                f"compared_with {self.compared_with!r} must be one of models: {', '.join(self.models)}"
            )
        for name in self.models:
            self.model(name)

    def model(self, name: str) -> GriffinConfig:
        """Returns a model's shape."""
        return GriffinConfig.from_dict(self.base | dict(self.models[name]))


def rows_of_benchmark(study: StepTimeStudy, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of `experiments.benchmark` on training as those of the model compared with.

    They are those of its lengths and its way to spend memory, of one document a sequence.

    Args:
      study: The settings.
      found: What the benchmark's JSON file holds.
    """
    memory = dataclasses.asdict(Variant.parse(study.memory))
    return [
        {"model": study.compared_with} | row
        for row in found["rows"]
        if row["what"] == "training"
        and row["length"] in study.lengths
        and row.get("document") == row["length"]
        and all(row[field] == value for field, value in memory.items())
    ]


def measure(
    study: StepTimeStudy, told: Callable[[str], None] = lambda _: None
) -> Iterator[dict[str, Any]]:
    """Yields a row of `benchmarks.training.Bench` for each model and length, with its `model`.

    Args:
      study: The settings.
      told: Called of what is going on.
    """
    variant = Variant.parse(study.memory)
    mesh = data_mesh()
    benches = {
        name: Bench(study.model(name), study.dtype, study.repeats, mesh) for name in study.models
    }
    for name, bench in benches.items():
        told(f"{name}: compiling {len(study.lengths)} programs")
        bench.prepare([(study.tokens // length, length, variant) for length in study.lengths])
    told("all programs are compiled")
    for name, bench in benches.items():
        for length in study.lengths:
            yield {"model": name} | bench.measure(study.tokens // length, length, variant)
        bench.forget()
