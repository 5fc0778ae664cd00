"""From the fields of a request to the texts that an engine writes, for both ways of asking."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from griffin_jax.inference import Context
from griffin_jax.inference.decode import row_keys
from griffin_jax.language_model import LanguageModel
from griffin_jax.serving import grammar, protocol
from griffin_jax.serving.errors import invalid
from griffin_jax.serving.protocol import Generation
from griffin_jax.serving.settings import ServerSettings
from griffin_jax.serving.worker import Batch


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that the engine is asked for.

    Attributes:
      prompts: Token ids of each prompt.
      draws: Texts that are written after each prompt.
      options: Arguments of `Engine.submit` that all texts have in common.
      keys: uint32[draws, 2], of the texts of every prompt: each prompt gets what it gets alone.
      grammar: What texts have to obey; None for nothing.
      context: What comes before every prompt; None for nothing.
    """

    prompts: list[list[int]]
    draws: int
    options: dict[str, Any]
    keys: np.ndarray
    grammar: grammar.Rules | None
    context: Context | None

    @property
    def prompt_tokens(self) -> int:
        """The tokens of all prompts, that of the context with each."""
        before = 0 if self.context is None else len(self.context.tokens)
        return sum(before + len(prompt) for prompt in self.prompts)

    def wanted(self, contexts: Sequence[Context | None] | None = None) -> list[dict[str, Any]]:
        """Returns the arguments of `Engine.submit` for each text, those of one prompt side by side.

        Args:
          contexts: Each prompt as a context, where it has been read already.
        """
        wanted = []
        for i, prompt in enumerate(self.prompts):
            read = None if contexts is None else contexts[i]
            begin = {"prompt": prompt, "context": self.context}
            if read is not None:
                begin = {"prompt": [], "context": read}
            for key in self.keys:
                rules = None if self.grammar is None else self.grammar.begin()
                wanted.append(self.options | begin | {"seed": key, "grammar": rules})
        return wanted


def plan_texts(
    lm: LanguageModel,
    settings: ServerSettings,
    body: Generation,
    prompts: list[list[int]],
    draws: int,
    max_new_tokens: int,
    logprobs: int,
    context: Context | None,
    compiler: grammar.Compiler,
) -> Plan:
    """Checks what a request asks for, as far as it is the same for both ways of asking.

    Raises:
      RequestError: it is out of a bound.
    """
    vocab_size = lm.config.vocab_size
    sampling = protocol.sampling_of(body)
    try:
        sampling.check_vocabulary(vocab_size)
    except ValueError as error:
        raise invalid(str(error), "logit_bias") from None
    before = 0 if context is None else len(context.tokens)
    for prompt in prompts:
        if before + len(prompt) > settings.most_prompt_tokens:
            raise invalid(
                f"the prompt has {before + len(prompt)} tokens; {settings.most_prompt_tokens} are "
                "the most here",
                "prompt",
                "context_length_exceeded",
            )
    if max_new_tokens > settings.most_new_tokens:
        newer = getattr(body, "max_completion_tokens", None) is not None
        name = "max_completion_tokens" if newer else "max_tokens"
        raise invalid(
            f"{name} is {max_new_tokens}; {settings.most_new_tokens} are the most here", name
        )
    if len(prompts) * draws > settings.most_choices:
        raise invalid(
            f"the request asks for {len(prompts) * draws} texts; {settings.most_choices} are the "
            "most here",
            "n",
        )
    if body.min_tokens > max_new_tokens:
        raise invalid(
            f"min_tokens is {body.min_tokens}, which is more than max_tokens, {max_new_tokens}",
            "min_tokens",
        )
    stop_ids = protocol.stop_ids_of(body, lm.tokenizer.stop_ids, vocab_size)
    options = {
        "max_new_tokens": max_new_tokens,
        "min_tokens": body.min_tokens,
        "sampling": sampling,
        "stop": protocol.stop_of(body),
        "stop_ids": stop_ids,
        "logprobs": min(logprobs, vocab_size),
        "deadline": settings.most_seconds,
    }
    rules = grammar.rules_of(body, compiler, stop_ids)
    seed = protocol.seed_of(body)
    with jax.default_device(_host()):
        keys = row_keys(seed, draws)
    return Plan(prompts, draws, options, keys, rules, context)


@functools.cache
def _host() -> jax.Device | None:
    """Returns the host, as an accelerator would first end the burst that it is at; None where JAX has none."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def usage(plan: Plan, batch: Batch, cached: int | None = None) -> dict[str, Any]:
    """Returns what a request has used, as OpenAI has it.

    Args:
      plan: What was asked for.
      batch: The texts, as far as they have come.
      cached: Tokens of prompts that did not have to be read, if not those that the engine knows of.
    """
    before = 0 if plan.context is None else plan.context.read
    firsts = batch.texts[:: plan.draws]
    if cached is None:
        cached = sum(text.request.cached_tokens + before for text in firsts)
    written = sum(text.request.num_tokens for text in batch.texts)
    return {
        "prompt_tokens": plan.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": plan.prompt_tokens + written,
        "prompt_tokens_details": {"cached_tokens": min(cached, plan.prompt_tokens)},
    }


def finish(reason: str) -> tuple[str, str | None]:
    """Returns OpenAI's `finish_reason`, and what it leaves unsaid (`stop_reason`)."""
    return (
        ("stop", None) if reason == "stop" else ("length", None if reason == "length" else reason)
    )
