"""Text in the place of a task: every next token is an answer, and a loss is all there is to measure."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.checkpoints import find_folder
from griffin_jax.fields import check_fields, field
from griffin_jax.studies.task import Sequence
from griffin_jax.tokenizer import load_tokenizer
from griffin_jax.training import load_corpus


@dataclasses.dataclass(frozen=True)
class Text:
    """Files to train on and to measure on.

    A row is a window of the corpus that begins anywhere, which documents may begin and end in.

    Attributes:
      train: Files, with commas between them; or one of tokens.
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
        return self._tokenizer.vocab_size

    @property
    def _tokenizer(self):
        return load_tokenizer(find_folder(self.tokenizer))

    def arrays(self, split: str) -> tuple[jax.Array, ...]:
        """Returns the corpus of "train" or "heldout", and the token that begins a document.

        Raises:
          ValueError: it is shorter than a row.
        """
        tokenizer = self._tokenizer
        corpus = load_corpus(getattr(self, split).split(","), tokenizer, self.cache)
        if len(corpus.tokens) <= self.length:
            raise ValueError(
                f"{split} {corpus.name}: {len(corpus.tokens)} tokens are no more than a row of "
                f"{self.length}; give more text or a smaller length"
            )
        return jnp.asarray(np.asarray(corpus.tokens)), jnp.int32(tokenizer.bos_id)

    def draw(self, key: jax.Array, tokens: jax.Array, bos: jax.Array) -> Sequence:
        start = jax.random.randint(key, (), 0, len(tokens) - self.length)
        window = jax.lax.dynamic_slice(tokens, (start,), (self.length + 1,)).astype(jnp.int32)
        inputs, targets = window[:-1], window[1:]
        t = jnp.arange(self.length, dtype=jnp.int32)
        begins = jax.lax.cummax(jnp.where(inputs == bos, t, 0))
        # The document before says nothing about where the next one begins.
        return Sequence(inputs, targets, targets != bos, t - begins)
