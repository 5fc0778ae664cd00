"""What a user says about how the next token is drawn."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.fields import check_fields, check_value, field, shown

# Logits divided by less than this, or by more than that, are no longer what float32 holds: they
# overflow, or all become equal. Between logits that differ at all, a draw at COLDEST is greedy.
COLDEST, HOTTEST = 1e-6, 1e6
# Logits with it are finite in float32: no token has as little chance as one that is not allowed.
MOST_BIAS = 1e30


@runtime_checkable
class SamplingMethod(Protocol):
    """A way of drawing of one's own: a frozen, hashable object with this one method.

    It becomes part of the compiled program, so two objects that are equal share one program.
    """

    def draw(self, logits: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the next token of one row.

        Args:
          logits: float32[V], the model's own.
          key: The PRNG key of this row and step, of which the result may depend.

        Returns:
          A token, an integer scalar.
        """
        ...


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Which token follows: what changes the logits applies in the order in which it stands here.

    Attributes:
      repetition_penalty: Divides positive and multiplies negative logits of tokens that the prompt
        or the text so far holds (arXiv:1909.05858); None or 1 is off.
      presence_penalty: Is taken from the logit of each token that the text so far holds, its prompt
        not counted; 0 is off.
      frequency_penalty: Is taken from it as often as the text so far holds the token; 0 is off.
      logit_bias: Is added to the logits of these tokens, a mapping from token ids; None is off.
      allowed_tokens: Takes all other tokens away; None allows all.
      temperature: Divides the logits; 0 takes the most likely token, and the rest has no effect. So
        does anything below `COLDEST`, where no draw would differ.
      top_k: Keeps the k most likely tokens; None keeps all.
      top_p: Keeps the smallest set of most likely tokens whose probability reaches p
        (arXiv:1904.09751); None or 1 keeps all.
      min_p: Keeps tokens of at least min_p times the probability of the most likely one
        (arXiv:2407.01082); None or 0 keeps all.

    Tokens that tie with the last one kept are kept too.

    Raises:
      ValueError: a value is out of its range.
    """

    temperature: float = field(0.0, at_least=0, at_most=HOTTEST)
    top_k: int | None = field(None, at_least=1)
    top_p: float | None = field(None, above=0, at_most=1)
    min_p: float | None = field(None, at_least=0, at_most=1)
    repetition_penalty: float | None = field(None, at_least=1 / HOTTEST, at_most=HOTTEST)
    presence_penalty: float = field(0.0, at_least=-HOTTEST, at_most=HOTTEST)
    frequency_penalty: float = field(0.0, at_least=-HOTTEST, at_most=HOTTEST)
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] | None = None
    allowed_tokens: tuple[int, ...] | None = field(None, filled=True)

    def __post_init__(self):
        check_fields(self)
        if self.temperature < COLDEST:
            object.__setattr__(self, "temperature", 0.0)
        # Tuples, so that a config can be hashed.
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
        if self.allowed_tokens is not None:
            object.__setattr__(self, "allowed_tokens", tuple(sorted({*self.allowed_tokens})))

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises ValueError when a token that is named is none of the model's."""
        pairs: Any = self.logit_bias or ()
        named = [token for token, _ in pairs]
        for name, tokens in (("logit_bias", named), ("allowed_tokens", self.allowed_tokens or ())):
            for token in tokens:
                if token != int(token) or not 0 <= token < vocab_size:
                    raise ValueError(f"{name} names token {token}; ids are 0 to {vocab_size - 1}")


def _pairs(logit_bias):
    """Returns tokens and numbers in order of the tokens."""
    try:
        biases = dict(logit_bias)
    except (TypeError, ValueError):
        biases = None
    if biases is None or isinstance(logit_bias, str):
        raise ValueError(
            f"logit_bias must be a dict from token ids to numbers, got {shown(logit_bias)}"
        )
    biases = {
        check_value("a token of logit_bias", token, int): check_value(
            f"logit_bias[{token}]", x, float, at_least=-MOST_BIAS, at_most=MOST_BIAS
        )
        for token, x in biases.items()
    }
    return tuple(sorted(biases.items()))


FIELDS = tuple(entry.name for entry in dataclasses.fields(SamplingConfig))


def sampling_from(
    sampling: SamplingConfig | SamplingMethod | None, settings: Mapping[str, Any]
) -> SamplingConfig | SamplingMethod:
    """Returns how to draw, from what a caller gave.

    Args:
      sampling: A config, or a method of one's own; None where `settings` say it.
      settings: Fields of `SamplingConfig`.

    Raises:
      TypeError: `settings` hold what is no field.
      ValueError: `sampling` is neither, or both were given, or a value is out of its range.
    """
    if unknown := [name for name in settings if name not in FIELDS]:
        raise TypeError(f"there is no option {unknown[0]!r}; sampling has {', '.join(FIELDS)}")
    if sampling is None:
        return SamplingConfig(**settings)
    if settings:
        raise ValueError(f"give sampling or {next(iter(settings))}, not both")
    if isinstance(sampling, SamplingConfig):
        return sampling
    if isinstance(sampling, type) or not isinstance(sampling, SamplingMethod):
        raise ValueError(
            "sampling must be a SamplingConfig or an object with a method draw(logits, key), got "
            f"{shown(sampling)}"
        )
    return sampling


def check_method(method: SamplingMethod, vocab_size: int) -> None:
    """Raises ValueError where a method of the user's does not draw one token, or has no hash."""
    name = type(method).__name__
    try:
        hash(method)
    except TypeError:
        raise ValueError(
            f"sampling method {name} has no hash; make it a frozen dataclass of hashable fields"
        ) from None
    # Mapped over rows, as programs have it; one that cannot be mapped would fail for all rows.
    logits = jax.ShapeDtypeStruct((1, vocab_size), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    token = jax.eval_shape(jax.vmap(method.draw), logits, keys)
    shape, dtype = getattr(token, "shape", ())[1:], getattr(token, "dtype", None)
    if dtype is None or shape or not np.issubdtype(dtype, np.integer):
        raise ValueError(
            f"sampling method {name} must draw one token, an integer scalar, but draw returns "
            f"{type(token).__name__ if dtype is None else f'{dtype}{list(shape)}'}"
        )
