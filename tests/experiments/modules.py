"""Modules of commands, for tests of what is in them."""

import importlib
from types import ModuleType

from absl import flags

import experiments.command  # noqa: F401  # whose flags stay


def of_command(name: str) -> ModuleType:
    """The module of a command without its flags, since those of two commands may share a name."""
    before = set(flags.FLAGS)
    module = importlib.import_module(f"experiments.{name}")
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    return module
