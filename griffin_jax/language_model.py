"""A model with its parameters and tokenizer, and what one does with them."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from griffin_jax import inference
from griffin_jax.config import GriffinConfig
from griffin_jax.inference import Chat, Sample, Sampler, SamplingConfig
from griffin_jax.inference.decode import row_keys
from griffin_jax.models import Griffin, State
from griffin_jax.tokenizer import Tokenizer, check_vocabulary, load_tokenizer

BUNDLED = "griffin-tiny"
_ASSETS = Path(__file__).parent / "assets"

Prompt = str | Sequence[int]


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A Griffin language model.

    Attributes:
      config: The model's shape.
      params: The parameters, a nested dict; leaves are arrays or packed tensors.
      tokenizer: Turns text into tokens and back; None where only tokens are used.
      dtype: Of activations, keys and values.
    """

    config: GriffinConfig
    params: dict[str, Any]
    tokenizer: Tokenizer | None = None
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))

    @property
    def model(self) -> Griffin:
        """The Linen module."""
        return Griffin(self.config, dtype=self.dtype)

    def apply(
        self,
        tokens: jax.Array | np.ndarray | Sequence[Sequence[int]],
        state: State | None = None,
        lengths: jax.Array | np.ndarray | Sequence[int] | None = None,
    ) -> tuple[jax.Array, State]:
        """Logits after every token.

        Args:
          tokens: int32[B, T].
          state: Of an earlier call, to go on from; None for nothing. It is not changed.
          lengths: int32[B], how many of each row's tokens are real, the rest being padding at its
            right. Defaults to T.

        Returns:
          Logits float32[B, T, V], and the state after each row's last real token.

        Raises:
          ValueError: `tokens` is not [B, T], or holds an id outside the vocabulary.
        """
        if not isinstance(tokens, jax.core.Tracer):
            tokens = np.asarray(tokens)
            if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
                raise ValueError(
                    f"tokens must be integers [batch, time], got {tokens.dtype}{list(tokens.shape)}"
                )
            if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.config.vocab_size:
                raise ValueError(
                    f"tokens range over {tokens.min()} to {tokens.max()}; "
                    f"ids are 0 to {self.config.vocab_size - 1}"
                )
        tokens = jnp.asarray(tokens, jnp.int32)
        if lengths is not None:
            lengths = jnp.asarray(lengths, jnp.int32)
        return _apply(self.model, self.params, tokens, state, lengths)

    def sampler(self) -> Sampler:
        """The sampler of token lists that `sample`, `stream` and `chat` use."""
        return Sampler(self.config, self.params, self.tokenizer, dtype=self.dtype)

    def sample(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | Sequence[int] = 0,
        stop: str | Sequence[str] = (),
        batch_size: int = 32,
    ) -> list[Sample]:
        """Continues each prompt.

        Args:
          prompts: Texts, which begin with BOS, or lists of token ids, taken as they are.
          max_new_tokens: At most this many tokens per prompt.
          temperature: See `SamplingConfig` for this and the next four.
          top_k: Keep the k most likely tokens.
          top_p: Keep the most likely tokens that together reach this probability.
          min_p: Keep tokens of at least this share of the largest probability.
          repetition_penalty: Weaken tokens that have come up before.
          seed: An int, or one per prompt: a prompt's own seed gives it the text that it gets alone.
          stop: Strings that end a text, besides the tokenizer's stop tokens.
          batch_size: Prompts that run together; it changes memory and speed, not the result.

        Raises:
          ValueError: a prompt is empty or holds an id outside the vocabulary, or another value is
            out of its range.
        """
        if isinstance(prompts, str):
            raise ValueError("prompts must be a list; put the one prompt into a list")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        sampling = SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty)
        encoded = [self._encode(prompt, f"prompt {i}") for i, prompt in enumerate(prompts)]
        keys = row_keys(seed, len(prompts))
        sampler = self.sampler()
        samples = []
        for begin in range(0, len(encoded), batch_size):
            rows = slice(begin, begin + batch_size)
            generation = sampler.generate(
                encoded[rows],
                sampling=sampling,
                max_new_tokens=max_new_tokens,
                seed=keys[rows],
                stop=stop,
            )
            samples += generation.samples()
        return samples

    def stream(
        self,
        prompt: Prompt,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
    ) -> Iterator[str]:
        """Continues one prompt, in pieces that join to `sample`'s text; arguments as there.

        No piece splits a character or shows part of a stop string.
        """
        return self.sampler().stream(
            self._encode(prompt, "prompt"),
            sampling=SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty),
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop=stop,
        )

    def chat(self, system: str | None = None) -> Chat:
        """A new conversation, which reads each turn once."""
        self._tokenizer()  # raises without one
        return Chat(self.sampler(), system=system)

    def score(
        self, pairs: Sequence[tuple[Prompt, Prompt]], batch_size: int = 16
    ) -> list[tuple[float, bool]]:
        """How likely each continuation is after its context.

        Args:
          pairs: (context, continuation), both text or both token ids. Of texts, the tokens are
            those of context + continuation behind one BOS; the continuation's are the ones beyond
            as many as the context alone has. An empty text as context is BOS alone.
          batch_size: Pairs that run together.

        Returns:
          For each pair the log-probability of the whole continuation, and whether every token of
          it is the model's most likely one.

        Raises:
          ValueError: a continuation has no token or a list of ids as context is empty, or an id is
            outside the vocabulary.
        """
        encoded = [self._encode_pair(i, *pair) for i, pair in enumerate(pairs)]
        return inference.score(self.model, self.params, encoded, batch_size)

    def _tokenizer(self):
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer; give lists of token ids")
        return self.tokenizer

    def _encode(self, prompt, name):
        if not len(prompt):
            raise ValueError(f"{name} is empty; give some text, or a list with the BOS id")
        return self._tokenizer().encode(prompt, bos=True) if isinstance(prompt, str) else prompt

    def _encode_pair(self, index, context, continuation):
        if not isinstance(context, str) or not isinstance(continuation, str):
            return context, continuation
        encode = self._tokenizer().encode
        before = encode(context, bos=True)
        whole = encode(context + continuation, bos=True)
        if len(whole) <= len(before):
            raise ValueError(
                f"continuation {index} adds no token of its own to its context; give a longer one"
            )
        return whole[: len(before)], whole[len(before) :]


@functools.partial(jax.jit, static_argnames="model")
def _apply(model, params, tokens, state, lengths):
    return model.apply({"params": params}, tokens, state, lengths=lengths)


def load(
    path: str | Path, *, dtype: DTypeLike | None = None, allow_nan: bool = False
) -> LanguageModel:
    """Loads a model and the tokenizer beside it.

    Args:
      path: "griffin-tiny", the model that comes with the package; or a folder in Hugging Face's
        format, with a published DeepMind tree, or written by `save`; or a name on the Hub.
      dtype: Of parameters and activations. Defaults to bfloat16 on accelerators and to float32 on
        CPUs, where XLA's bfloat16 matrix products are slower.
      allow_nan: Go on where a weight holds NaN or infinity.

    Raises:
      FileNotFoundError: there is no such folder.
      CheckpointError: (a ValueError) the folder has no weights, or damaged or unfitting ones.
      ValueError: the tokenizer is damaged or does not fit the model.
    """
    from griffin_jax.checkpoints import load_checkpoint

    if dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    folder = _ASSETS / BUNDLED if path == BUNDLED else path
    checkpoint = load_checkpoint(folder, dtype=dtype, allow_nan=allow_nan)
    try:
        tokenizer = load_tokenizer(checkpoint.folder)
    except FileNotFoundError:
        tokenizer = None
    else:
        check_vocabulary(tokenizer, checkpoint.config)
    return LanguageModel(checkpoint.config, checkpoint.params, tokenizer, dtype)


def save(
    lm: LanguageModel, folder: str | Path, format: Literal["orbax", "huggingface"] = "orbax"
) -> None:
    """Writes a model and its tokenizer into a new folder, which `load` reads back exactly.

    Args:
      lm: The model.
      folder: What to make; it must not exist, or be empty, and appears when it is complete.
      format: "orbax" is ours; "huggingface" is what transformers reads.

    Raises:
      CheckpointError: (a ValueError) the folder holds something, or the format cannot express the
        model.
    """
    from griffin_jax.checkpoints import save_checkpoint

    save_checkpoint(folder, lm.config, lm.params, format=format, tokenizer=lm.tokenizer)
