"""What one row of a batch has written."""

import dataclasses
from collections.abc import Sequence

from griffin_jax.inference.text import StoppedText
from griffin_jax.tokenizer import StreamDecoder, Tokenizer


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the model wrote.

    Attributes:
      text: The text, without what ended it.
      tokens: Token ids, without the stop token. Where a stop string ended the text, these are the
        fewest tokens whose text begins with `text`.
      logprobs: Log-probability of each token under the model's own distribution: temperature 1,
        no penalty, no filter.
      finish_reason: "stop" for a stop token or stop string, "length" for max_new_tokens.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: str


def decoder_after(tokenizer: Tokenizer | None, text: Sequence[int]) -> StreamDecoder | None:
    """A decoder that goes on after the tokens of `text`; None without a tokenizer."""
    if tokenizer is None:
        return None
    decoder = StreamDecoder(tokenizer)
    # A space at the beginning of a text may be the vocabulary's own; after a prompt it is real.
    # And a prompt may end within a character, of which no more than four tokens are bytes.
    decoder.push(text[-4:])
    return decoder


class Row:
    """One row on the host.

    Attributes:
      text: What has been written.
      drawn: How many tokens the device has drawn, with stop tokens and what follows a stop string.
      finish_reason: As of `Sample`; None until it has ended.
    """

    def __init__(self, text: StoppedText):
        self.text = text
        self.tokens, self.logprobs = [], []
        self.drawn = 0
        self.finish_reason = None

    def add(self, token: int, logprob: float, stop_ids: Sequence[int]) -> None:
        """Takes the next token, which may be a stop token."""
        if token in stop_ids:
            self.end("stop")
            return
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.text.add(token)
        if self.text.stopped:
            self.end("stop")

    def end(self, reason: str) -> None:
        """Nothing more comes, for `reason` if not for a stop string."""
        self.text.finish()
        self.finish_reason = "stop" if self.text.stopped else reason

    def sample(self) -> Sample:
        """What has been written so far."""
        count = self.text.num_tokens()
        return Sample(
            self.text.text, self.tokens[:count], self.logprobs[:count], self.finish_reason
        )
