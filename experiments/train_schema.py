"""The fields of a training run's config: those of `TrainConfig`, and which files it reads."""

import dataclasses

from griffin_jax.config import GriffinConfig
from griffin_jax.fields import field
from griffin_jax.training import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """A run of `experiments.train`.

    Attributes:
      model: The model's shape; that of `init_from` where a model is given there.
      init_from: Folder or name of a model to begin with; empty for random weights.
      tokenizer: Folder of the tokenizer; empty for that of `init_from`.
      data: "text", or "chat" for conversations.
      train: Files to train on, with commas between them.
      heldout: Files to evaluate on; empty for none.
    """

    model: GriffinConfig | None = None
    init_from: str = ""
    tokenizer: str = ""
    data: str = field("text", one_of=("text", "chat"))
    train: str = ""
    heldout: str = ""
