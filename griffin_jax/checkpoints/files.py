"""Small files beside the weights, and folders that appear complete or not at all."""

import contextlib
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from griffin_jax import text_files
from griffin_jax.errors import CheckpointError
from griffin_jax.files import new_folder, staged_folder_of
from griffin_jax.paths import AnyPath, OutputError, resolve
from griffin_jax.sharding import is_first, wait_for_all


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
      CheckpointError: it is not there, or no JSON object.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}")
    return text_files.read_json(path, error=CheckpointError)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON object; of several processes, the first does."""
    if not is_first():
        return
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def staged_folder(target: AnyPath, replace: bool = False) -> Iterator[Path]:
    """Yields a new folder beside `target` that takes its name when the block ends well.

    When the block raises, the new folder is removed. Several processes get the same folder, which
    takes its name when all have ended the block.

    Args:
      target: What to make.
      replace: Take the place of a folder that is there.

    Raises:
      CheckpointError: `target` exists and is not an empty folder, without `replace`.
      OutputError: (an OSError) it cannot be written, or the disk is full.
      InUseError: (an OSError) another process writes it.
    """
    target = resolve(target, "folder")
    mark = None if jax.process_count() == 1 else "all"  # a name that all processes know
    wait_for_all(f"before {target}")
    with contextlib.ExitStack() as stack:
        if is_first():
            partial = stack.enter_context(_new_folder(target, replace, mark))
        else:
            partial = staged_folder_of(target, mark)
        wait_for_all(f"begin {target}")
        yield partial
        wait_for_all(f"end {target}")
    wait_for_all(f"after {target}")


@contextlib.contextmanager
def _new_folder(target, replace, mark):
    try:
        with new_folder(target, replace=replace, mark=mark) as partial:
            yield partial
    except OutputError as error:
        if error.errno != errno.EEXIST:
            raise
        raise CheckpointError(str(error)) from None


def listed(names: list[str]) -> str:
    """Returns the first of some tensors' names with a verb, for messages: "tensors a, b are"."""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"tensor {shown} is" if len(names) == 1 else f"tensors {shown} are"
