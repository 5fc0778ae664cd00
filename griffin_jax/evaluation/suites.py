"""Rows of the model card, and how each is measured. The rows themselves are in configs/eval_*.py."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence

GENERATED_CODE = "config.run_generated_code"
UNGUARDED_CODE = "HF_ALLOW_CODE_EVAL"


@dataclasses.dataclass(frozen=True)
class Measure:
    """One figure of one task of the harness.

    Attributes:
      task: The harness's name of the task or group; ours begin with "griffin_".
      metric: The key of the figure in the task's results: metric and filter.
      shots: Examples in a prompt; None is what the task itself says.
      differs: What is known to differ from what the card measured.
      comparable: Whether the figure belongs beside the card's at all.
      needs: What has to be allowed before it runs: `GENERATED_CODE`, a field of the config, or
        `UNGUARDED_CODE`, that and an environment variable, for programs outside of our sandbox.
      scale: The card's unit: figures are multiplied by it.
    """

    task: str
    metric: str
    shots: int | None
    differs: str
    comparable: bool = True
    needs: str = ""
    scale: float = 100.0

    @property
    def run(self) -> tuple[str, int | None]:
        """The task and the number of examples; figures that share both come from one run."""
        return self.task, self.shots


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the card.

    Attributes:
      benchmark: Its name there.
      card: The published figure of each model, in percent.
      protocol: What the card says of how it was measured.
      measures: How it is measured here, the one to be compared with the card first.
    """

    benchmark: str
    card: Mapping[str, float]
    protocol: str
    measures: tuple[Measure, ...]


def select(rows: Sequence[Row], names: str) -> list[Row]:
    """Returns the rows that some names choose, with the measures that they choose.

    Args:
      rows: All there are.
      names: Names of tasks or benchmarks, separated by commas; empty for all.

    Raises:
      ValueError: a name is that of no task and no benchmark.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        return list(rows)
    known = {row.benchmark.lower() for row in rows}
    known |= {measure.task for row in rows for measure in row.measures}
    for name in wanted:
        if name not in known and name.lower() not in known:
            tasks = dict.fromkeys(measure.task for row in rows for measure in row.measures)
            near = difflib.get_close_matches(name.lower(), known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"no task {name!r} in this config{hint}; there are {', '.join(tasks)}")
    chosen = []
    for row in rows:
        if row.benchmark.lower() in map(str.lower, wanted):
            chosen.append(row)
        elif measures := tuple(m for m in row.measures if m.task in wanted):
            chosen.append(dataclasses.replace(row, measures=measures))
    return chosen
