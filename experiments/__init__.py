"""The commands: `python -m experiments.NAME --help`."""
