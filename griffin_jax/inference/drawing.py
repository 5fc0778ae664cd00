"""How the next token of each row is drawn from its logits, on the device."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.devices import MODEL, constrain, model_shards, per_shard
from griffin_jax.inference.sampling import COLDEST, SamplingConfig, SamplingMethod

# So many of the largest scores are looked at before all are sorted; blocks to find them in.
_CANDIDATES = 128
_BLOCK = 64
# The count of a token that the prompt holds; counts of the text itself stay below it.
IN_PROMPT = 1 << 30


@flax.struct.dataclass
class Settings:
    """The numbers of a `SamplingConfig`, one a row; a value that is off changes nothing.

    Attributes:
      temperature: float32[B]; 0 takes the most likely token.
      top_k: int32[B]; the largest int32 is off.
      top_p: float32[B]; 1 is off.
      min_p: float32[B]; 0 is off.
      repetition_penalty: float32[B]; 1 is off.
      presence_penalty: float32[B]; 0 is off.
      frequency_penalty: float32[B]; 0 is off.
      method: int32[B], which of a program's own methods draws; -1 for the numbers above.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array
    presence_penalty: jax.Array
    frequency_penalty: jax.Array
    method: jax.Array


class Needs(NamedTuple):
    """What a program has to do for some row of it; how much of it is each row's own value.

    Attributes:
      draws: A temperature is above 0.
      filters: A row keeps some of the tokens only: top_k, top_p or min_p.
      penalties: A row has a penalty, so that tokens are counted.
      bias: A row adds to logits, or allows some tokens only.
      masks: A row has a grammar, or may not end yet.
      top: How many of the most likely tokens are reported with each one.
    """

    draws: bool = False
    filters: bool = False
    penalties: bool = False
    bias: bool = False
    masks: bool = False
    top: int = 0

    def __or__(self, other: "Needs") -> "Needs":
        """Returns what a program needs that serves both."""
        return Needs(*map(max, self, other))


# What a program needs for everything that a row can ask for, except for lists of the most likely tokens.
EVERYTHING = Needs(draws=True, filters=True, penalties=True, bias=True, masks=True)


def settings_of(sampling: SamplingConfig | None, method: int = -1) -> Settings:
    """Returns the settings of one row, scalars; None for a row that a method of the user's draws."""
    sampling = sampling or SamplingConfig()
    greedy = sampling.temperature < COLDEST
    off = np.iinfo(np.int32).max
    top_k = off if greedy or sampling.top_k is None else min(sampling.top_k, off)
    return Settings(
        temperature=np.float32(0 if greedy else sampling.temperature),
        top_k=np.int32(top_k),
        top_p=np.float32(1 if greedy or sampling.top_p is None else sampling.top_p),
        min_p=np.float32(0 if greedy or sampling.min_p is None else sampling.min_p),
        repetition_penalty=np.float32(sampling.repetition_penalty or 1),
        presence_penalty=np.float32(sampling.presence_penalty),
        frequency_penalty=np.float32(sampling.frequency_penalty),
        method=np.int32(method),
    )


def needs_of(sampling: SamplingConfig | None, top: int = 0) -> Needs:
    """Returns what a row of these settings needs of its program; None as for `settings_of`."""
    if sampling is None:
        return Needs(top=top)
    values = settings_of(sampling)
    return Needs(
        draws=bool(values.temperature > 0),
        filters=bool(values.top_k < np.iinfo(np.int32).max or values.top_p < 1 or values.min_p > 0),
        penalties=bool(
            values.repetition_penalty != 1 or values.presence_penalty or values.frequency_penalty
        ),
        bias=bool(sampling.logit_bias) or sampling.allowed_tokens is not None,
        top=top,
    )


def bias_of(sampling: SamplingConfig | None, vocab_size: int) -> np.ndarray:
    """Returns float32[V] to add to the logits of one row; -inf for a token that is not allowed."""
    bias = np.zeros(vocab_size, np.float32)
    if sampling is None:
        return bias
    if sampling.allowed_tokens is not None:
        bias[:] = -np.inf
        bias[list(sampling.allowed_tokens)] = 0
    pairs: Any = sampling.logit_bias or ()
    for token, value in pairs:
        bias[token] += value
    return bias


def choose(
    logits: jax.Array,
    keys: jax.Array,
    settings: Settings,
    needs: Needs,
    *,
    methods: Sequence[SamplingMethod] = (),
    counts: jax.Array | None = None,
    bias: jax.Array | None = None,
    allowed: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Draws one token per row.

    Args:
      logits: float32[B, V].
      keys: PRNG keys [B]; a row's draw depends on its own key, logits and settings only.
      settings: The settings of each row.
      needs: The needs of all rows together.
      methods: The users' own ways, by the number that `Settings.method` has.
      counts: int32[B, V], how often a row's text holds each token, and `IN_PROMPT` more where its
        prompt holds it; only needed under penalties.
      bias: float32[B, V], added to the logits; only needed where `needs.bias` says so.
      allowed: bool[B, V], what may be drawn at all; only needed where `needs.masks` says so.

    Returns:
      Tokens int32[B], and their log-probabilities float32[B] under the model's own distribution:
      temperature 1, no penalty, no filter, no bias.
    """
    scores = logits
    if needs.penalties:
        scores = _penalize(scores, settings, counts)
    if needs.bias:
        scores = bias + scores
    own = logits  # that the users' own ways draw from
    if needs.masks:
        scores, own = (jnp.where(allowed, values, -jnp.inf) for values in (scores, own))
    if needs.draws:
        drawn = settings.temperature[:, None] > 0
        # Relative to the largest, so that a tiny temperature cannot make two infinities.
        warm = scores - jnp.max(scores, axis=-1, keepdims=True)
        warm = warm / jnp.where(drawn, settings.temperature[:, None], 1)
        if needs.filters:
            warm = _filter(warm, settings)
        # The largest of scores with this noise is a draw from their softmax.
        draw = functools.partial(jax.random.gumbel, shape=scores.shape[1:], dtype=scores.dtype)
        noise = jax.vmap(draw)(keys)
        warm = warm + constrain(noise, "batch", "vocabulary")
        scores = jnp.where(drawn, warm, scores)
    cut = model_shards() > 1 and scores.shape[1] % model_shards() == 0
    whole, row = ("batch", "vocabulary"), ("batch",)
    token, logprob = per_shard(
        functools.partial(_largest, cut),
        (scores, logits),
        (whole, whole),
        (((scores.shape[0],), row), ((scores.shape[0],), row)),
    )
    return _by_methods(methods, logits, own, keys, settings, token, logprob)


def most_likely(logits: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Returns the `count` most likely tokens of logits [B, V], int32[B, count], and
    log-probabilities.
    """
    values, tokens = jax.lax.top_k(logits, count)
    return tokens, values - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def corrected(
    exact: Callable[[jax.Array], jax.Array],
    logits: jax.Array,
    token: jax.Array,
    logprob: jax.Array,
    likely: jax.Array | None = None,
    logprobs: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """Returns log-probabilities without most of what rounding has done to the logits.

    A rounding of one logit counts in full in the log-probability of its own token, and as much as
    the token is likely in those of all.

    Args:
      exact: Computes logits of tokens int32[B, K], float32[B, K], better than `logits` are.
      logits: float32[B, V].
      token: int32[B], what was drawn.
      logprob: float32[B], its log-probability under `logits`.
      likely: int32[B, K], what `most_likely` returns; None where that is not asked for.
      logprobs: float32[B, K], the same.

    Returns:
      The log-probability of the token, and the most likely tokens with theirs, where asked for.
    """
    named = _argmax(logits)[:, None] if likely is None else likely
    named = jnp.concatenate([token[:, None], named], axis=1)
    rough = jnp.take_along_axis(logits, named, axis=1, mode="clip")
    off = exact(named) - rough
    probability = jnp.exp(logprob[:, None] + rough - rough[:, :1])
    again = jnp.pad(named[:, 1:] == token[:, None], ((0, 0), (1, 0)))  # named as the drawn one
    total = jnp.sum(jnp.where(again, 0, probability * off), axis=1, keepdims=True)
    change = off - total
    found = (logprob + change[:, 0],)
    return found if likely is None else (*found, likely, logprobs + change[:, 1:])


def _penalize(scores, settings, counts):
    """Scores [B, V] of tokens that came up before, weakened: see `SamplingConfig`."""
    factor = settings.repetition_penalty[:, None]
    penalized = jnp.where(scores > 0, scores / factor, scores * factor)
    scores = jnp.where(counts > 0, penalized, scores)
    written = counts % IN_PROMPT
    scores = scores - settings.presence_penalty[:, None] * (written > 0)
    return scores - settings.frequency_penalty[:, None] * written


def _by_methods(methods, logits, allowed, keys, settings, token, logprob):
    """Returns tokens and log-probabilities, those of rows that a method draws replaced.

    Methods see the logits `allowed`; log-probabilities are those under `logits`.
    """
    for number, method in enumerate(methods):
        own = jax.vmap(method.draw)(allowed, keys).astype(jnp.int32)
        chosen = jnp.take_along_axis(logits, own[:, None], axis=-1, mode="clip")[:, 0]
        mine = settings.method == number
        token = jnp.where(mine, own, token)
        logprob = jnp.where(mine, chosen - jax.nn.logsumexp(logits, axis=-1), logprob)
    return token, logprob


def _largest(cut, scores, logits):
    """Returns the token of the largest score, and its log-probability under the logits, both
    [B, V].

    Where the vocabulary is cut over "model", each part sends five numbers a row, all at once.
    """
    token = _argmax(scores)[:, None]
    chosen = jnp.take_along_axis(logits, token, axis=-1)
    if not cut:
        return token[:, 0], chosen[:, 0] - jax.nn.logsumexp(logits, axis=-1)
    best = jnp.take_along_axis(scores, token, axis=-1)
    top = jnp.max(logits, axis=-1, keepdims=True)
    total = jnp.sum(jnp.exp(logits - top), axis=-1, keepdims=True)
    # Float32 holds every id below 2**24.
    token = (token + jax.lax.axis_index(MODEL) * scores.shape[1]).astype(jnp.float32)
    found = jnp.concatenate([token, chosen, best, top, total], axis=1)
    # [parts, B, 5]; of equal scores the first part's wins, as in one argmax.
    found = jax.lax.all_gather(found, MODEL)
    winner = jnp.argmax(found[..., 2], axis=0)[None, :, None]
    token, chosen = jnp.split(jnp.take_along_axis(found[..., :2], winner, axis=0)[0], 2, axis=1)
    top, total = found[..., 3], found[..., 4]
    largest = jnp.max(top, axis=0)
    total = jnp.sum(total * jnp.exp(top - largest[None]), axis=0)
    return token[:, 0].astype(jnp.int32), chosen[:, 0] - (largest + jnp.log(total))


def _argmax(scores):
    """Returns `jnp.argmax` of scores [B, V], int32[B].

    In two plain reductions, which a CPU does four times as fast as one over pairs.
    """
    vocab = scores.shape[-1]
    largest = (scores == jnp.max(scores, axis=-1, keepdims=True)) | jnp.isnan(scores)
    places = jnp.arange(vocab, dtype=jnp.int32)[None]
    return jnp.min(jnp.where(largest, places, vocab - 1), axis=-1)


def _filter(scores, settings):
    """Scores [B, V] with the tokens that the filters exclude at -inf."""
    scores = jnp.where(scores >= _threshold(scores, settings), scores, -jnp.inf)
    threshold = jnp.max(scores, axis=-1, keepdims=True) + jnp.log(settings.min_p)[:, None]
    return jnp.where(scores >= threshold, scores, -jnp.inf)


def _threshold(scores, settings):
    """Returns the smallest score [B, 1] that top_k and top_p keep; -inf where both are off.

    The largest few scores tell as a rule, and are found without sorting. All are sorted only where
    some row's top_k is larger, or its top_p takes more tokens; the other rows keep theirs.
    """
    vocab = scores.shape[-1]
    top_k, top_p = settings.top_k[:, None], settings.top_p[:, None]
    off = (top_k >= vocab) & (top_p >= 1)
    if vocab <= _CANDIDATES:
        return jnp.where(off, -jnp.inf, _sorted_threshold(scores, settings))
    ranked = _ranked(scores, _CANDIDATES)
    few = top_k <= _CANDIDATES
    total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    threshold, before = _ranked_threshold(ranked, total, settings)
    enough = few | off | ((top_k >= vocab) & (before[:, -1:] >= top_p))
    found = jax.lax.cond(
        jnp.all(enough),
        lambda: threshold,
        lambda: jnp.where(enough, threshold, _sorted_threshold(scores, settings)),
    )
    return jnp.where(off, -jnp.inf, found)


def _sorted_threshold(scores, settings):
    """Returns the definition of `_threshold`, of rows where one of both is on."""
    return _ranked_threshold(jnp.sort(scores, axis=-1, descending=True), None, settings)[0]


def _ranked_threshold(ranked, total, settings):
    """Returns the threshold by the largest scores [B, K], sorted, and the probability before each.

    Of all scores `total` [B, 1] is the log of the sum of the exponentials; None where `ranked`
    holds them all.
    """
    top_k, top_p = settings.top_k[:, None], settings.top_p[:, None]
    count = jnp.minimum(ranked.shape[1], top_k)
    kept = jnp.where(jnp.arange(ranked.shape[1])[None] < count, ranked, -jnp.inf)
    own = jax.nn.logsumexp(kept, axis=-1, keepdims=True)
    total = own if total is None else jnp.where(top_k <= ranked.shape[1], own, total)
    probability = jnp.exp(kept - total)
    before = jnp.cumsum(probability, axis=-1) - probability
    needed = jnp.sum(before < top_p, axis=-1, keepdims=True, dtype=jnp.int32)
    count = jnp.where(top_p < 1, jnp.minimum(count, needed), count)
    return jnp.take_along_axis(ranked, count - 1, axis=-1), before


def _ranked(scores, count):
    """Returns the `count` largest of scores [B, V], in order: they lie in `count` blocks at most."""
    batch, vocab = scores.shape
    if vocab <= count * _BLOCK:
        return jax.lax.top_k(scores, count)[0]
    scores = jnp.pad(scores, ((0, 0), (0, -vocab % _BLOCK)), constant_values=-jnp.inf)
    blocks = scores.reshape(batch, -1, _BLOCK)
    _, best = jax.lax.top_k(jnp.max(blocks, axis=-1), count)
    found = jnp.take_along_axis(blocks, best[..., None], axis=1)
    return jax.lax.top_k(found.reshape(batch, -1), count)[0]
