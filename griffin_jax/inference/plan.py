"""What a request asks for, checked where it enters."""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from griffin_jax import inputs
from griffin_jax.config import GriffinConfig
from griffin_jax.fields import check_value, shown
from griffin_jax.inference.context import Context
from griffin_jax.inference.decode import MAX_STOP_IDS, row_keys
from griffin_jax.inference.drawing import Needs, Settings, bias_of, needs_of, settings_of
from griffin_jax.inference.grammar import Grammar
from griffin_jax.inference.sampling import SamplingConfig, SamplingMethod, check_method
from griffin_jax.tokenizer import Tokenizer

TOPS = (0, 1, 5, 20)  # programs report so many of the most likely tokens, as each is compiled


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a request asks for, checked.

    Attributes:
      tokens: The whole text before the first new token, the context's included.
      max_new_tokens: How many are drawn at most.
      sampling: A `SamplingConfig`, or None where a method of the user's draws.
      method: That method; None where there is none.
      key: uint32[2], of `row_keys`.
      stop: Strings that end the text.
      stop_ids: Tokens that end it.
      logprobs: How many of the most likely tokens are reported with each.
      priority: Waiting requests of a larger number go first.
      deadline: By `time.monotonic`, when it ends at the latest; None for never.
      keeps_context: Whether `Request.context` is asked for in the end.
      grammar: Says what may follow; None for anything.
      min_tokens: How many are drawn before a stop token may be.
    """

    tokens: tuple[int, ...]
    max_new_tokens: int
    sampling: SamplingConfig | None
    method: SamplingMethod | None
    key: np.ndarray
    stop: tuple[str, ...]
    stop_ids: tuple[int, ...]
    logprobs: int
    priority: int
    deadline: float | None
    keeps_context: bool
    grammar: Grammar | None
    min_tokens: int

    def settings(self, method: int) -> Settings:
        """Returns how a row of this request draws, by the number that its method has in an engine."""
        return settings_of(self.sampling, method)

    @property
    def needs(self) -> Needs:
        """What its row needs of a program."""
        needs = needs_of(self.sampling, next(n for n in TOPS if n >= self.logprobs))
        withholds = self.min_tokens > 0 and bool(self.stop_ids)
        return needs._replace(masks=self.grammar is not None or withholds)

    def bias(self, vocab_size: int) -> np.ndarray:
        """Returns float32[V]; see `drawing.bias_of`."""
        return bias_of(self.sampling, vocab_size)


def make_plan(
    config: GriffinConfig,
    tokenizer: Tokenizer | None,
    prompt: str | Sequence[int],
    max_new_tokens: int,
    *,
    sampling: SamplingConfig | SamplingMethod,
    seed: int | np.ndarray,
    stop: str | Sequence[str],
    stop_ids: Sequence[int] | None,
    logprobs: int,
    context: Context | None,
    keep_context: bool,
    priority: int,
    deadline: float | None,
    grammar: Grammar | None,
    min_tokens: int,
    name: str,
) -> Plan:
    """Returns the plan of a request to a model of this shape; see `Engine.submit`.

    Raises:
      ValueError: a value is out of its range; the message is one line that names it.
    """
    vocab_size = config.vocab_size
    max_new_tokens = inputs.check_max_new_tokens(max_new_tokens)
    stop = inputs.check_stop(stop)
    if stop and tokenizer is None:
        raise ValueError("stop strings need a tokenizer; this model has none")
    if stop_ids is None:
        stop_ids = () if tokenizer is None else tokenizer.stop_ids
    elif not hasattr(stop_ids, "__len__") or len(stop_ids):
        inputs.check_tokens(stop_ids, vocab_size, "stop_ids")
    if len(stop_ids) > MAX_STOP_IDS:
        raise ValueError(f"stop_ids holds {len(stop_ids)} tokens; {MAX_STOP_IDS} are the most")
    most = min(TOPS[-1], vocab_size)
    logprobs = check_value("logprobs", logprobs, int, at_least=0, at_most=most)
    priority = check_value("priority", priority, int)
    deadline = check_value("deadline", deadline, float | None, above=0)
    min_tokens = check_value("min_tokens", min_tokens, int, at_least=0, at_most=max_new_tokens)
    if grammar is not None and (isinstance(grammar, type) or not isinstance(grammar, Grammar)):
        raise ValueError(
            f"grammar must be an object with a method allowed(tokens), got {shown(grammar)}"
        )
    if context is not None:
        _check_context(context, config)
    plain = method = None
    if isinstance(sampling, SamplingConfig):
        plain = sampling
        plain.check_vocabulary(vocab_size)
    else:
        method = sampling
        check_method(method, vocab_size)
    return Plan(
        tokens=_whole_text(vocab_size, tokenizer, prompt, context, name),
        max_new_tokens=max_new_tokens,
        sampling=plain,
        method=method,
        key=_key_of(seed),
        stop=stop,
        stop_ids=tuple(map(int, stop_ids)),
        logprobs=logprobs,
        priority=priority,
        deadline=None if deadline is None else time.monotonic() + deadline,
        keeps_context=keep_context,
        grammar=grammar,
        min_tokens=min_tokens,
    )


def _check_context(context, config):
    inputs.check_type("context", context, Context, "of LanguageModel.read or Request.context")
    try:
        inputs.check_state(context.state, config, 1)
    except ValueError:
        raise ValueError(
            "context is of a model of another shape; read the text with this one"
        ) from None


def _key_of(seed):
    """Returns the key of a seed, or the one that was given in its place, uint32[2]."""
    if isinstance(seed, np.ndarray) and seed.shape == (2,) and seed.dtype == np.uint32:
        return seed
    return row_keys([seed], 1)[0] if np.ndim(seed) else row_keys(seed, 1)[0]


def _whole_text(vocab_size, tokenizer, prompt, context, name):
    """Returns all tokens before the first new one."""
    if context is None or isinstance(prompt, str) or not hasattr(prompt, "__len__"):
        inputs.check_prompt(prompt, name)
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError("this model has no tokenizer; give lists of token ids")
        prompt = tokenizer.encode(prompt, bos=None if context is None else False)
    elif len(prompt):
        inputs.check_tokens(prompt, vocab_size, name)
    before, read = (context.tokens, context.read) if context else ((), 0)
    inputs.check_tokens((*before[read:], *prompt), vocab_size, name)
    return (*before, *map(int, prompt))
