"""The engine under work: many requests at once, beginnings in common, drafts, memory over time."""

from griffin_jax.benchmarks.engine.workloads import WORKLOADS, measure

__all__ = ["WORKLOADS", "measure"]
