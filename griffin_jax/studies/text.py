"""Text in the place of a task: every next token is an answer, and a loss is all there is to measure."""

import dataclasses

from griffin_jax.checkpoints import find_folder
from griffin_jax.fields import check_fields, field
from griffin_jax.tokenizer import load_tokenizer
from griffin_jax.training import Windows, load_corpus


@dataclasses.dataclass(frozen=True)
class Text:
    """Files to train on and to measure on.

    Attributes:
      train: Files, with commas between them.
      heldout: Files.
      tokenizer: Folder or name of the model whose tokenizer it is.
      length: Tokens of a row, T.
      cache: Folder of tokenized files.
    """

    train: str = field(filled=True)
    heldout: str = field(filled=True)
    tokenizer: str = field("griffin-tiny", filled=True)
    length: int = field(1024, at_least=2)
    cache: str = field("runs/cache", filled=True)

    def __post_init__(self):
        check_fields(self)

    @property
    def vocab_size(self) -> int:
        return load_tokenizer(find_folder(self.tokenizer)).vocab_size

    def windows(self, split: str, seed: int) -> Windows:
        """Returns the rows of "train" or "heldout"."""
        tokenizer = load_tokenizer(find_folder(self.tokenizer))
        corpus = load_corpus(getattr(self, split).split(","), tokenizer, self.cache)
        return Windows(corpus, self.length, seed)
