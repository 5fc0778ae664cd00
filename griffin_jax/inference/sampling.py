"""How the next token is drawn from logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.devices import MODEL, constrain, model_shards, per_shard
from griffin_jax.fields import check_fields, field

# So many of the largest scores are looked at before all are sorted; blocks to find them in.
_CANDIDATES = 128
_BLOCK = 64
# Logits divided by less than this, or by more than that, are no longer what float32 holds: they
# overflow, or all become equal. Between logits that differ at all, a draw at COLDEST is greedy.
COLDEST, HOTTEST = 1e-6, 1e6


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Which token follows: the filters apply in the order in which they stand here.

    Attributes:
      repetition_penalty: Divides positive and multiplies negative logits of tokens that the prompt
        or the text so far holds (arXiv:1909.05858); None or 1 is off.
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

    def __post_init__(self):
        check_fields(self)
        if self.temperature < COLDEST:
            object.__setattr__(self, "temperature", 0.0)

    def active(self) -> dict[str, np.ndarray]:
        """The values that have an effect, as scalars by name.

        As arguments of a jitted function they cost a compilation only when another set of filters
        comes into force, and none when a value changes.
        """
        values = {}
        if self.repetition_penalty not in (None, 1):
            values["repetition_penalty"] = np.float32(self.repetition_penalty)
        if not self.temperature:
            return values
        values["temperature"] = np.float32(self.temperature)
        if self.top_k is not None:
            values["top_k"] = np.int32(min(self.top_k, np.iinfo(np.int32).max))
        if self.top_p not in (None, 1):
            values["top_p"] = np.float32(self.top_p)
        if self.min_p:
            values["min_p"] = np.float32(self.min_p)
        return values


def choose(
    logits: jax.Array,
    keys: jax.Array,
    active: dict[str, jax.Array],
    seen: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Draws one token per row.

    Args:
      logits: float32[B, V].
      keys: PRNG keys [B]; a row's draw depends on its own key only.
      active: Of `SamplingConfig.active`.
      seen: bool[B, V], the tokens under the repetition penalty; only needed with one.

    Returns:
      Tokens int32[B], and their log-probabilities float32[B] under the model's own distribution:
      temperature 1, no penalty, no filter.
    """
    scores = logits
    if "repetition_penalty" in active:
        penalty = active["repetition_penalty"]
        penalised = jnp.where(scores > 0, scores / penalty, scores * penalty)
        scores = jnp.where(seen, penalised, scores)
    if "temperature" in active:
        # Relative to the largest, so that a tiny temperature cannot make two infinities.
        scores = scores - jnp.max(scores, axis=-1, keepdims=True)
        scores = _filter(scores / active["temperature"], active)
        # The largest of scores with this noise is a draw from their softmax.
        noise = jax.vmap(functools.partial(jax.random.gumbel, shape=scores.shape[1:]))(keys)
        scores = scores + constrain(noise, "batch", "vocabulary")
    cut = model_shards() > 1 and scores.shape[1] % model_shards() == 0
    whole, row = ("batch", "vocabulary"), ("batch",)
    return per_shard(
        functools.partial(_largest, cut),
        (scores, logits),
        (whole, whole),
        (((scores.shape[0],), row), ((scores.shape[0],), row)),
    )


def _largest(cut, scores, logits):
    """The token of the largest score, and its log-probability under the logits, both [B, V].

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
    """`jnp.argmax` of scores [B, V], int32[B].

    In two plain reductions, which a CPU does four times as fast as one over pairs.
    """
    vocab = scores.shape[-1]
    largest = (scores == jnp.max(scores, axis=-1, keepdims=True)) | jnp.isnan(scores)
    places = jnp.arange(vocab, dtype=jnp.int32)[None]
    return jnp.min(jnp.where(largest, places, vocab - 1), axis=-1)


def _filter(scores, active):
    """Scores [B, V] with the tokens that the filters exclude at -inf."""
    if "top_k" in active or "top_p" in active:
        scores = jnp.where(scores >= _threshold(scores, active), scores, -jnp.inf)
    if "min_p" in active:
        threshold = jnp.max(scores, axis=-1, keepdims=True) + jnp.log(active["min_p"])
        scores = jnp.where(scores >= threshold, scores, -jnp.inf)
    return scores


def _threshold(scores, active):
    """The smallest score [B, 1] that top_k and top_p keep.

    The largest few scores tell as a rule, and are found without sorting. All are sorted only where
    top_k is larger, or where some row's top_p takes more tokens.
    """
    if scores.shape[-1] <= _CANDIDATES:
        return _sorted_threshold(scores, active)
    ranked = _ranked(scores, _CANDIDATES)
    if "top_k" in active:
        threshold, _ = _ranked_threshold(ranked, None, active)
        enough = active["top_k"] <= _CANDIDATES
    else:
        total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
        threshold, before = _ranked_threshold(ranked, total, active)
        enough = jnp.all(before[:, -1] >= active["top_p"])
    return jax.lax.cond(enough, lambda: threshold, lambda: _sorted_threshold(scores, active))


def _sorted_threshold(scores, active):
    """The definition of `_threshold`."""
    return _ranked_threshold(jnp.sort(scores, axis=-1, descending=True), None, active)[0]


def _ranked_threshold(ranked, total, active):
    """The threshold by the largest scores [B, K], sorted, and the probability before each.

    Of all scores, or of those that top_k keeps, `total` [B, 1] is the log of the sum of the
    exponentials; None where `ranked` holds them all.
    """
    count = jnp.full((len(ranked), 1), ranked.shape[1], jnp.int32)
    if "top_k" in active:
        count = jnp.minimum(count, active["top_k"])
    before = None
    if "top_p" in active:
        kept = jnp.where(jnp.arange(ranked.shape[1])[None] < count, ranked, -jnp.inf)
        if total is None:
            total = jax.nn.logsumexp(kept, axis=-1, keepdims=True)
        probability = jnp.exp(kept - total)
        before = jnp.cumsum(probability, axis=-1) - probability
        needed = jnp.sum(before < active["top_p"], axis=-1, keepdims=True, dtype=jnp.int32)
        count = jnp.minimum(count, needed)
    return jnp.take_along_axis(ranked, count - 1, axis=-1), before


def _ranked(scores, count):
    """The `count` largest of scores [B, V], in order: they lie in `count` blocks at most."""
    batch, vocab = scores.shape
    if vocab <= count * _BLOCK:
        return jax.lax.top_k(scores, count)[0]
    scores = jnp.pad(scores, ((0, 0), (0, -vocab % _BLOCK)), constant_values=-jnp.inf)
    blocks = scores.reshape(batch, -1, _BLOCK)
    _, best = jax.lax.top_k(jnp.max(blocks, axis=-1), count)
    found = jnp.take_along_axis(blocks, best[..., None], axis=1)
    return jax.lax.top_k(found.reshape(batch, -1), count)[0]
