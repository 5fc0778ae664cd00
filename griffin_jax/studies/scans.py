"""Timings of scans over lengths and widths, forward and backward (figure 8)."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from griffin_jax.benchmarks import kernels
from griffin_jax.benchmarks.machine import Limits
from griffin_jax.fields import check_fields, check_value, field
from griffin_jax.studies.claims import check_claims

_CASE = re.compile(r"forward( and backward)?, (\d+) x (\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScansStudy:
    """Settings.

    Attributes:
      title: What it is about.
      paper: What the paper did and says.
      shorter: What is run otherwise than in the paper, for captions.
      lengths: Tokens, T.
      widths: Channels, R.
      measured: A JSON file of `experiments.benchmark` whose rows are taken in place of timing any.
      operations: Operations of `benchmarks.kernel_cases.recurrence_cases`.
      dtype: The dtype of the RG-LRU's inputs; the linear recurrence is float32.
      seconds: How long a loop of calls takes at a twentieth of the device's limit.
      repeats: Times each figure is taken.
      claims: Statements to test; see `claims.check_claims` and `speed_report`.
    """

    title: str = field(filled=True)
    paper: str = ""
    shorter: str = ""
    lengths: tuple[int, ...] = field((2048,), filled=True)
    widths: tuple[int, ...] = field((1024,), filled=True)
    measured: str = ""
    operations: tuple[str, ...] = field(("linear_recurrence",), filled=True)
    dtype: str = "bfloat16"
    seconds: float = field(0.1, at_least=0)
    repeats: int = field(3, at_least=1)
    claims: tuple[Any, ...] = ()

    def __post_init__(self):
        check_fields(self)
        for name in ("lengths", "widths"):
            for i, number in enumerate(getattr(self, name)):
                check_value(f"{name}[{i}]", number, int, at_least=1)
        check_claims(self.claims)


def rows_of_benchmark(study: ScansStudy, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of `experiments.benchmark` that are of a study, as `measure` has them.

    Args:
      study: The settings, whose operations, lengths and widths are looked for.
      found: What the benchmark's JSON file holds.
    """
    rows = []
    for row in found["rows"]:
        case = _CASE.fullmatch(row.get("case", ""))
        if row["what"] != "kernel" or row["operation"] not in study.operations or not case:
            continue
        about = {"length": int(case[2]), "width": int(case[3]), "backward": bool(case[1])}
        if about["length"] in study.lengths and about["width"] in study.widths:
            # A plain function has no kernels to choose from, and goes by its operation's name.
            rows.append(about | row | {"kernel": row.get("kernel") or row["operation"]})
    return rows


def measure(
    study: ScansStudy, limits: Limits, told: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Returns a row of `benchmarks.kernels` for each operation, direction, kernel, T and R.

    All is done twice, and the first time, which compiles, is forgotten: what is timed then follows
    one another without a pause.

    Args:
      study: The settings.
      limits: What the device reaches.
      told: Called of what is going on.

    Returns:
      Rows, with `length`, `width` and `backward` beside what that module says.
    """
    told("compiling")
    for _ in _rows(dataclasses.replace(study, repeats=1), limits, told):
        pass
    told("all programs are compiled")
    return list(_rows(study, limits, told))


def _rows(study, limits, told) -> Iterator[dict[str, Any]]:
    config = {"seconds": study.seconds, "repeats": study.repeats}
    for width in study.widths:
        for length in study.lengths:
            cases = kernels.kernel_cases.recurrence_cases(width, length, study.dtype)
            wanted = (case for case in cases if case.operation in study.operations)
            for row in kernels.measure_cases(wanted, config, limits):
                backward = "backward" in row["case"]
                row = {"length": length, "width": width, "backward": backward} | row
                told(f"{row}")
                yield row
