"""The folder of a run: who is at it, and whether it holds the run that a config describes."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from griffin_jax.files import write_json
from griffin_jax.locks import Lock
from griffin_jax.paths import AnyPath, make_folder
from griffin_jax.text_files import read_json
from griffin_jax.training.config import TrainConfig

_FILE = "run.json"
# In run.json, beside what a run cannot do without.
_SETTINGS = "settings"
_UNKNOWN = "nothing"


@contextlib.contextmanager
def hold_run(folder: AnyPath) -> Iterator[Path]:
    """Holds a run's folder against other processes; makes it, and removes it if it stays empty.

    Of several processes of one run, the first holds it. The thread that holds a run may hold it
    again.

    Returns:
      The resolved folder.

    Raises:
      InUseError: (an OSError) another process is at this run.
      OutputError: (an OSError) the folder cannot be written.
    """
    folder = make_folder(folder, "run")
    try:
        if jax.process_index():
            yield folder
        else:
            with Lock(folder / ".lock", f"the run {folder}"):
                yield folder
    finally:
        with contextlib.suppress(OSError):  # it holds something
            folder.rmdir()


def check_run(folder: Path, config: TrainConfig, data: str | None) -> None:
    """Checks that a folder holds the run of a config, if it holds one.

    Args:
      folder: The folder of the run.
      config: The settings of the run.
      data: What it is trained on, as `Windows.fingerprint` has it; None where that is not known.

    Raises:
      ValueError: it is another model's or another batch size's run; or another learning rate's, or
        trained on other data so far, and `config.resume_with_changes` does not say that this is
        meant.
    """
    if not (folder / _FILE).exists():
        return
    there, here = read_json(folder / _FILE), _description(config, data)
    before, now = there.pop(_SETTINGS, {}), here.pop(_SETTINGS)
    for name, was, is_now in _changed(there, here):
        raise ValueError(
            f"{folder} holds a run with {name} = {was}, this config says {is_now}: use the same "
            "config or another folder"
        )
    for name, was, is_now in _changed(before, now):
        # A run of an earlier version says nothing of its settings, and some rows nothing of data.
        if was == _UNKNOWN or (name == "data" and None in (was, is_now)):
            continue
        if name != "steps" and not config.resume_with_changes:
            raise ValueError(
                f"{folder} holds a run with {name} = {was}, this config says {is_now}: "
                "resume_with_changes=true goes on with the change; or use another folder"
            )
        if jax.process_index() == 0:
            print(f"[{name} was {was} so far, and is {is_now}]", file=sys.stderr, flush=True)


def describe_run(folder: Path, config: TrainConfig, data: str | None) -> None:
    """Writes down which run a folder holds; of several processes, the first does."""
    here = _description(config, data)
    if jax.process_index() == 0 and not (
        (folder / _FILE).exists() and read_json(folder / _FILE) == here
    ):
        write_json(folder / _FILE, here)


def _description(config, data) -> dict[str, Any]:
    settings = config.settings() | {"data": data}
    # Tuples are lists in JSON.
    return json.loads(json.dumps(config.identity() | {_SETTINGS: settings}))


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns the name and both values of what differs."""
    was, here = _flat(before), _flat(now)
    both = [
        (name, was.get(name, _UNKNOWN), here.get(name, _UNKNOWN))
        for name in sorted(was.keys() | here.keys())
    ]
    return [(name, old, new) for name, old, new in both if old != new]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat
