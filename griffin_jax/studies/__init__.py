"""The papers' studies on a small scale: tasks, models of the registry, runs, tables and plots."""

from griffin_jax.studies import long_answers, long_documents, memory, scans, step_time
from griffin_jax.studies.long_answers import LongAnswersStudy
from griffin_jax.studies.long_documents import LongDocumentsStudy
from griffin_jax.studies.memory import MemoryStudy
from griffin_jax.studies.needle import Needle
from griffin_jax.studies.phonebook import Phonebook
from griffin_jax.studies.runs import carry_out
from griffin_jax.studies.scans import ScansStudy
from griffin_jax.studies.step_time import StepTimeStudy
from griffin_jax.studies.study import TASKS, Study
from griffin_jax.studies.task import LongText, Sequence, Task

__all__ = [
    "TASKS",
    "LongAnswersStudy",
    "LongDocumentsStudy",
    "LongText",
    "MemoryStudy",
    "Needle",
    "Phonebook",
    "ScansStudy",
    "Sequence",
    "StepTimeStudy",
    "Study",
    "Task",
    "carry_out",
    "long_answers",
    "long_documents",
    "memory",
    "scans",
    "step_time",
]
