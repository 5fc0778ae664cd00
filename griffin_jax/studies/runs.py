"""Trains the models of a study, and measures what they have learned."""

import contextlib
import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.benchmarks import memory
from griffin_jax.files import write_json
from griffin_jax.models import Griffin, abstract_params
from griffin_jax.studies.accuracy import accuracy
from griffin_jax.studies.study import Group, Study, changes_in_words
from griffin_jax.studies.together import Plan, keep_params, train_together
from griffin_jax.text_files import read_json
from griffin_jax.training import hold_run
from griffin_jax.training.stop_signal import StopSignal


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
    """Returns what is known of runs that are not done: their curves so far."""
    _check_settings(place / "group.json", group)
    found = read_json(place / "curve.json")
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
            "settings": run.settings(),
        }
        for i, run in enumerate(group.runs)
        for shape in [abstract_params(run.model())]
    ]


def _file(folder, run):
    return folder / f"{run.folder}.json"


def _read(folder, run):
    path = _file(folder, run)
    found = read_json(path)
    if found.get("settings") != run.settings():
        raise ValueError(
            f"{path} is of a run with other settings; give another --run folder, or delete it"
        )
    return found


def _do(group: Group, place: Path, folder: Path, over: Callable[[], bool], told: Callable) -> bool:
    study, first = group.runs[0].study, group.runs[0]
    plan = Plan(
        model=first.model(),
        task=first.task({}),
        optimizer=study.optimizer_config(),
        **first.schedule(),
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
                "settings": run.settings(),
            },
            indent=None,
        )
    keep_params(place, trained)
    return True


def _check_settings(path: Path, group: Group) -> None:
    here = json.loads(json.dumps([[run.folder, run.settings()] for run in group.runs]))
    if path.exists() and read_json(path, list) != here:
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
