"""Conversations that keep the model's state from turn to turn."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from griffin_jax.fields import check_value
from griffin_jax.inference.decode import row_keys
from griffin_jax.inference.sampler import Context, Generation, Sample, Sampler
from griffin_jax.inference.sampling import SamplingConfig
from griffin_jax.tokenizer import END_OF_TURN


class Chat:
    """A conversation. Each turn is read once: the state remembers the turns before.

    A turn that raises, or whose stream is left before its end, has not taken place.

    Attributes:
      messages: The turns so far, dicts of "role" ("system", "user", "assistant") and "content".
      context: The model's state and every token that it has read or written; None at the beginning.
        It and `messages` are all that a conversation is: keep them to come back to a turn later.
    """

    messages: list[dict[str, str]]
    context: Context | None

    def __init__(self, sampler: Sampler, system: str | None = None):
        self.messages = [{"role": "system", "content": system}] if system else []
        self.context = None
        self._sampler = sampler

    def fork(self) -> "Chat":
        """Another conversation with the same past; costs nothing, as nothing is overwritten."""
        return copy.copy(self)

    def send(self, message: str, **options: Any) -> Sample:
        """The model's answer to a user's message; arguments as for `stream`."""
        generation = self._start(message, **options)
        for _ in generation.stream():
            pass
        return self._commit(message, generation)

    def stream(self, message: str, **options: Any) -> Iterator[str]:
        """The model's answer in pieces.

        Args:
          message: The user's turn.
          **options: Fields of `SamplingConfig`, and `max_new_tokens`, `seed` and `stop` as for
            `Sampler.start`. The answer also ends with the model's turn. Turns under the same seed
            draw from different random streams.

        Raises:
          ValueError: the message is empty, the tokenizer has no marks for turns, or an option is
            out of its range.
        """
        generation = self._start(message, **options)
        return self._stream(message, generation)

    def _stream(self, message, generation):
        yield from generation.stream()
        self._commit(message, generation)

    def _start(
        self,
        message: str,
        max_new_tokens: int = 256,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        **sampling: Any,
    ) -> Generation:
        check_value("message", message, str)
        if not message:
            raise ValueError("message is empty; give some text")
        tokenizer = self._sampler.tokenizer
        turn = {"role": "user", "content": message}
        if self.context is None:
            text = tokenizer.format_chat([*self.messages, turn], add_generation_prompt=True)
        else:
            # The context ends where the answer does, however it ended.
            text = f"{END_OF_TURN}\n" + tokenizer.format_chat([turn], add_generation_prompt=True)
        return self._sampler.start(
            [tokenizer.encode(text, bos=self.context is None)],
            context=self.context,
            sampling=SamplingConfig(**sampling),
            max_new_tokens=max_new_tokens,
            seed=row_keys(seed, len(self.messages) + 1)[-1:],
            stop=stop,
        )

    def _commit(self, message, generation) -> Sample:
        (sample,) = generation.samples()
        self.context = generation.context()
        self.messages = [
            *self.messages,
            {"role": "user", "content": message},
            {"role": "assistant", "content": sample.text},
        ]
        return sample
