"""The commands: `python -m experiments.NAME --help`, or `griffin-jax NAME --help` where installed."""

import sys

from experiments import guard

if sys.argv[:1] == ["-m"]:  # what Python says while it looks for the module to run
    guard.begin()
