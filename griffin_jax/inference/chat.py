"""Conversations that keep the model's state from turn to turn."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from griffin_jax.fields import check_value
from griffin_jax.inference.context import Context
from griffin_jax.inference.decode import row_keys
from griffin_jax.inference.engine import Engine
from griffin_jax.inference.request import Request, Sample
from griffin_jax.inputs import check_type
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

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        system: str | None = None,
        context: Context | None = None,
    ):
        """Begins a conversation.

        Args:
          make_engine: Makes the engine of a turn.
          system: What the model is told before the first message.
          context: That of a conversation that was left after an answer, to go on with it.

        Raises:
          ValueError: there are both, a system text and a context, or either is something else.
        """
        check_value("system", system, str | None)
        if context is not None:
            right = "of Chat.context, LanguageModel.read or Request.context"
            check_type("context", context, Context, right)
        if system and context is not None:
            raise ValueError(
                "system is for the beginning of a conversation; the context is past it"
            )
        self.messages = [{"role": "system", "content": system}] if system else []
        self.context = context
        self._make_engine = make_engine

    def fork(self) -> "Chat":
        """Returns another conversation with the same past; costs nothing, as nothing is
        overwritten.
        """
        return copy.copy(self)

    def send(self, message: str, max_new_tokens: int = 256, **options: Any) -> Sample:
        """Returns the model's answer to a user's message; arguments as for `stream`."""
        with self._make_engine() as engine:
            request = self._submit(engine, message, max_new_tokens, **options)
            request.result()
            return self._commit(message, request)

    def stream(self, message: str, max_new_tokens: int = 256, **options: Any) -> Iterator[str]:
        """Yields the model's answer in pieces.

        Args:
          message: The user's turn.
          max_new_tokens: At most this many; the answer also ends with the model's turn.
          **options: As for `Engine.submit`. Turns under the same seed draw from different random
            streams.

        Raises:
          ValueError: the message is empty, the tokenizer has no marks for turns, or an option is
            out of its range.
        """
        engine = self._make_engine()
        request = self._submit(engine, message, max_new_tokens, **options)
        return self._stream(engine, message, request)

    def _stream(self, engine, message, request):
        with engine:
            yield from request
            self._commit(message, request)

    def _submit(
        self,
        engine: Engine,
        message: str,
        max_new_tokens: int,
        seed: int = 0,
        **options: Any,
    ) -> Request:
        if own := [name for name in ("context", "keep_context") if name in options]:
            raise TypeError(
                f"{own[0]} is the conversation's own; LanguageModel.chat(context=...) begins another"
            )
        check_value("message", message, str)
        seed = check_value("seed", seed, int, at_least=0, below=2**32)  # one for all turns
        if not message:
            raise ValueError("message is empty; give some text")
        tokenizer = engine.tokenizer
        tokenizer.check_turns()
        turn = {"role": "user", "content": message}
        if self.context is None:
            text = tokenizer.format_chat([*self.messages, turn], add_generation_prompt=True)
        else:
            # The context ends where the answer does, however it ended.
            text = f"{END_OF_TURN}\n" + tokenizer.format_chat([turn], add_generation_prompt=True)
        return engine.submit(
            tokenizer.encode(text, bos=self.context is None),
            max_new_tokens,
            seed=row_keys(seed, len(self.messages) + 1)[-1],
            context=self.context,
            keep_context=True,
            **options,
        )

    def _commit(self, message, request) -> Sample:
        sample = request.result()
        self.context = request.context()
        self.messages = [
            *self.messages,
            {"role": "user", "content": message},
            {"role": "assistant", "content": sample.text},
        ]
        return sample
