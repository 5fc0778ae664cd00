"""The time of a training step over the length of its sequences, tokens a batch fixed (figure 3)."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from griffin_jax.benchmarks.training import Bench, Variant
from griffin_jax.config import DTYPES, GriffinConfig
from griffin_jax.fields import check_fields, field
from griffin_jax.studies.claims import check_claims


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTimeStudy:
    """Settings.

    Attributes:
      title: What it is about.
      paper: What the paper did and says.
      shorter: What is run otherwise than in the paper, for captions.
      base: Fields of `GriffinConfig` that the models share.
      models: By name, the fields that each model has otherwise; the first is what others are compared
        with.
      lengths: Tokens of a sequence; times are compared with that of the first.
      tokens: In a batch, the same at every length.
      memory: How a step spends memory; see `benchmarks.training.Variant.parse`.
      dtype: The dtype of activations.
      repeats: Steps that are timed.
      paper_ratios: By model and length, what the paper found.
      claims: Statements to test; see `claims.check_claims` and `speed_report`.
    """

    title: str = field(filled=True)
    paper: str = ""
    shorter: str = ""
    base: dict[str, Any] = dataclasses.field(default_factory=dict)
    models: dict[str, Any] = dataclasses.field(default_factory=dict)
    lengths: tuple[int, ...] = field((2048, 4096), filled=True)
    tokens: int = field(32_768, at_least=1)
    memory: str = field("none:1:1", filled=True)
    dtype: str = field("bfloat16", one_of=DTYPES)
    repeats: int = field(6, at_least=1)
    paper_ratios: dict[str, Any] = dataclasses.field(default_factory=dict)
    claims: tuple[Any, ...] = ()

    def __post_init__(self):
        check_fields(self)
        check_claims(self.claims)
        Variant.parse(self.memory)
        for length in self.lengths:
            if self.tokens % length:
                raise ValueError(
                    f"length {length} does not divide the {self.tokens} tokens of a batch"
                )
        if not self.models:
            raise ValueError("models must name one or more")
        for name in self.models:
            self.model(name)

    def model(self, name: str) -> GriffinConfig:
        """Returns a model's shape."""
        return GriffinConfig.from_dict(self.base | dict(self.models[name]))


def measure(
    study: StepTimeStudy, told: Callable[[str], None] = lambda _: None
) -> Iterator[dict[str, Any]]:
    """Yields a row of `benchmarks.training.Bench` for each model and length, with its `model`.

    Args:
      study: The settings.
      told: Called of what is going on.
    """
    variant = Variant.parse(study.memory)
    benches = {name: Bench(study.model(name), study.dtype, study.repeats) for name in study.models}
    for name, bench in benches.items():
        told(f"{name}: compiling {len(study.lengths)} programs")
        bench.prepare([(study.tokens // length, length, variant) for length in study.lengths])
    told("all programs are compiled")
    for name, bench in benches.items():
        for length in study.lengths:
            yield {"model": name} | bench.measure(study.tokens // length, length, variant)
        bench.forget()
