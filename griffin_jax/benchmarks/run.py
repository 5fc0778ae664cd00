"""A whole benchmark: the device's limits, then every job of a config."""

from collections.abc import Callable, Mapping
from typing import Any

from griffin_jax.benchmarks import isolation, tasks
from griffin_jax.benchmarks.results import has_limits, without_shares

Row = dict[str, Any]


def measure(
    config: Mapping[str, Any],
    *,
    begin: Callable[[dict[str, Any]], None] = lambda results: None,
    report: Callable[[Row], None] = lambda row: None,
    save: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Measures what a config asks for.

    Args:
      config: Fields of a file in configs/, as plain values.
      begin: Is given the results when the machine is known and no row is there.
      report: Is given each row as it comes, and may take from it what is not to be kept.
      save: Is given the results after each row, so that a run that is stopped has what it measured.

    Returns:
      "kind", "config", "machine" (see `machine.describe`), "limits" and "rows".

    Raises:
      ValueError: the config asks for what there is not, or the machine is not what it asks for.
    """
    config = dict(config)
    execute = isolation.run_apart if config.get("isolate") else tasks.run
    tasks.jobs(config, {})  # a config that is wrong ends here
    (found,) = execute(tasks.Job("limits", "", config))
    results = {"kind": config["kind"], "config": config}
    results |= {"machine": found["machine"], "limits": found["limits"], "rows": []}
    begin(results)
    for job in tasks.jobs(config, results["limits"]):
        for row in execute(job):
            row = row if has_limits(results) else without_shares(row)
            report(row)
            results["rows"].append(row)
            save(results)
    return results
