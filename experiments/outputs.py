"""Outputs of commands, which are checked before any work is done; messages name the flag."""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import processes

_STANDARD_OUTPUT = "/dev/stdout"


def file(flag: flags.FlagHolder, inputs: Sequence[str] = ()) -> Path | None:
    """Returns the file that a flag names, for `griffin_jax.files.new_file`; None where it names
    none.

    "-" is standard output.
    It is held until the command ends, so that another one for the same file ends at once.

    Raises:
      OSError: it cannot be written, or another command is at it.
      ValueError: it is no path, or one of the `inputs`.
    """
    from griffin_jax.files import claim
    from griffin_jax.paths import check_file

    if flag.value is None:
        return None
    value = _STANDARD_OUTPUT if flag.value == "-" else flag.value
    path = check_file(value, f"--{flag.name}", inputs)
    if processes.is_first():
        claim(path)
    return path


def folder(flag: flags.FlagHolder) -> Path | None:
    """Returns the folder to write files into that a flag names; None where it names none.

    Raises:
      OSError: it cannot be made or written into.
      ValueError: it is no path.
    """
    from griffin_jax.paths import check_inside

    return None if flag.value is None else check_inside(flag.value, f"--{flag.name}")


def new_folder(flag: flags.FlagHolder) -> Path:
    """Returns the folder that a flag names, for `griffin_jax.files.new_folder`.

    Raises:
      OSError: it is there already, or cannot be made.
      ValueError: it is no path.
    """
    from griffin_jax.paths import check_folder

    return check_folder(flag.value, f"--{flag.name}")
