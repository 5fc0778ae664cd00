"""The papers' studies on a small scale: tasks, models of the registry, runs, tables and plots."""

from griffin_jax.studies import memory
from griffin_jax.studies.memory import MemoryStudy
from griffin_jax.studies.study import TASKS, Study, carry_out
from griffin_jax.studies.task import Sequence, Task, TaskRows

__all__ = [
    "TASKS",
    "MemoryStudy",
    "Sequence",
    "Study",
    "Task",
    "TaskRows",
    "carry_out",
    "memory",
]
