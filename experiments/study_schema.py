"""The fields of a study's config: those of the library's dataclasses, with a name and a kind."""

import dataclasses

from griffin_jax.fields import field
from griffin_jax.studies import (
    LongAnswersStudy,
    LongDocumentsStudy,
    MemoryStudy,
    ScansStudy,
    StepTimeStudy,
    Study,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named:
    """The fields of every study.

    Attributes:
      name: What its files are called.
      kind: "trained" for models that are trained on a task, "memory" for a look into one,
        "long_documents" for answers of models that a study has trained, "long_answers" for those of any
        model to lines of JSON, "step_time" and "scans" for what is timed.
      title: What it is about.
    """

    name: str = field(filled=True)
    kind: str = field(
        one_of=("trained", "memory", "long_documents", "long_answers", "step_time", "scans")
    )
    title: str = field(filled=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained(Study, Named):
    """A study that trains models."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongDocuments(LongDocumentsStudy, Named):
    """A study of reading in chunks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongAnswers(LongAnswersStudy, Named):
    """A study of reading lines of JSON in chunks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTime(StepTimeStudy, Named):
    """A study of the time of training steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scans(ScansStudy, Named):
    """A study of the time of scans."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory(MemoryStudy, Named):
    """A study of what a model's states hold.

    Attributes:
      model: A folder or the name of a model.
      text: A file of texts, as `bits_per_byte` reads them.
    """

    model: str = field("griffin-tiny", filled=True)
    text: str = field(filled=True)


KINDS = {
    "trained": Trained,
    "memory": Memory,
    "long_documents": LongDocuments,
    "long_answers": LongAnswers,
    "step_time": StepTime,
    "scans": Scans,
}
