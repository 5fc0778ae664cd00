"""The commands: `python -m experiments.NAME --help`."""

from experiments import guard

guard.begin()
