"""Workloads of an engine, by name."""

from collections.abc import Callable, Iterator
from typing import Any

from griffin_jax.benchmarks import memory
from griffin_jax.benchmarks.engine import (
    arrivals,
    drafts,
    host_work,
    offline,
    prefixes,
    serving,
    steadiness,
)
from griffin_jax.language_model import LanguageModel

Row = dict[str, Any]

WORKLOADS: dict[str, Callable[[LanguageModel, dict[str, Any]], Iterator[Row]]] = {
    "offline": offline.measure,
    "host": host_work.measure,
    "load": arrivals.measure,
    "serving": serving.measure,
    "conversations": prefixes.conversations,
    "first": prefixes.first_tokens,
    "forks": prefixes.forks,
    "speculation": drafts.measure,
    "memory": steadiness.measure,
}


def measure(lm: LanguageModel, config: dict[str, Any]) -> Iterator[Row]:
    """Yields the rows of all workloads that a config names, one after another."""
    for name in config["workloads"]:
        with memory.meeting_limits():
            yield from WORKLOADS[name](lm, config)
