"""Tokens as reports show them: names, bytes and places in a text."""

import codecs
from collections.abc import Sequence
from typing import Any

from griffin_jax.inference.request import TopLogprobs
from griffin_jax.tokenizer import Tokenizer


class TokenTexts:
    """The tokens of one text as they come, with the place at which each begins."""

    def __init__(self, tokenizer: Tokenizer, offset: int = 0):
        self._tokenizer = tokenizer
        self._offset = offset
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> int:
        """Returns where the next token begins, in characters."""
        begin = self._offset
        self._offset += len(self._utf8.decode(self._tokenizer.token_bytes(token)))
        return begin


def top_names(tokenizer: Tokenizer, tops: TopLogprobs) -> dict[str, float]:
    """Returns the most likely tokens by their names; those whose names are taken by their numbers."""
    named: dict[str, float] = {}
    for token, logprob in tops:
        name = tokenizer.token_name(token)
        named[name if name not in named else f"token_id:{token}"] = logprob
    return named


def completion_logprobs(
    tokenizer: Tokenizer,
    texts: TokenTexts,
    tokens: Sequence[int],
    logprobs: Sequence[float | None],
    tops: Sequence[TopLogprobs | None] | None,
) -> dict[str, Any]:
    """Returns the `logprobs` of a completion's choice.

    Args:
      tokenizer: The model's.
      texts: The texts of this choice so far.
      tokens: Those that are new.
      logprobs: The log-probability of each; None for a first one, which nothing comes before.
      tops: The most likely tokens in its place; None where none were asked for, as for a first one.
    """
    return {
        "tokens": [tokenizer.token_name(token) for token in tokens],
        "token_logprobs": list(logprobs),
        "top_logprobs": None
        if tops is None
        else [None if top is None else top_names(tokenizer, top) for top in tops],
        "text_offset": [texts.add(token) for token in tokens],
    }


def chat_logprobs(
    tokenizer: Tokenizer,
    tokens: Sequence[int],
    logprobs: Sequence[float],
    tops: Sequence[TopLogprobs] | None,
) -> dict[str, Any]:
    """Returns the `logprobs` of a chat's choice."""

    def entry(token, logprob):
        return {
            "token": tokenizer.token_name(token),
            "logprob": logprob,
            "bytes": list(tokenizer.token_bytes(token)),
        }

    content = []
    for i, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
        top = [] if tops is None else [entry(*pair) for pair in tops[i]]
        content.append({**entry(token, logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}
