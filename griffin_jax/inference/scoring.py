"""Log-probabilities of given continuations."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from griffin_jax.inference import prefill
from griffin_jax.inference.finite import check_finite
from griffin_jax.models import Griffin
from griffin_jax.sharding import jit_on_mesh
from griffin_jax.sharding.per_shard import constrain_state, replicate

_HEAD_BLOCK = 64  # positions whose logits stand in memory at a time, times the batch


def score(
    model: Griffin,
    params: dict,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch_size: int = 16,
) -> list[tuple[float, bool]]:
    """How likely each continuation is after its context.

    Args:
      model: The model.
      params: Its parameters.
      pairs: (context, continuation), token ids, neither empty.
      batch_size: Pairs that run together. Pairs of like length share a batch.

    Returns:
      For each pair the log-probability of the whole continuation, and whether every token of it is
      the model's most likely one.

    Raises:
      ValueError: a context or continuation is empty, or holds an id outside the vocabulary; or
        logits are NaN or infinite, see `check_finite`.
    """
    vocab_size = model.config.vocab_size
    for i, (context, continuation) in enumerate(pairs):
        for name, part in (("context", context), ("continuation", continuation)):
            prefill.check_tokens(part, vocab_size, f"{name} {i}")
    longest_first = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    scores = {}
    for begin in range(0, len(pairs), batch_size):
        chosen = longest_first[begin : begin + batch_size]
        scores.update(
            zip(chosen, _score_batch(model, params, [pairs[i] for i in chosen]), strict=True)
        )
    return [scores[i] for i in range(len(pairs))]


def _score_batch(model, params, pairs):
    batch_size = prefill.batch_size_for(len(pairs), params)
    inputs = [[*context, *continuation][:-1] for context, continuation in pairs]
    targets = [[*context, *continuation][1:] for context, continuation in pairs]
    first = np.zeros(batch_size, np.int32)  # place of the first target that counts
    first[: len(pairs)] = [len(context) - 1 for context, _ in pairs]
    total = max(map(len, inputs))
    state = prefill.fresh_state(model, params, batch_size, total)
    log_probability, greedy = np.zeros(batch_size, np.float64), np.ones(batch_size, bool)
    begin = 0
    for length in prefill.chunk_lengths(total, batch_size):
        wanted, _ = prefill.pad(targets, batch_size, begin, length)
        tokens, lengths = prefill.put_chunk(params, *prefill.pad(inputs, batch_size, begin, length))
        wanted = prefill.put(params, wanted, "batch", "time")
        state, *found = _score_chunk(
            model, params, state, tokens, lengths, wanted, np.maximum(first - begin, 0)
        )
        chunk_log_probability, chunk_greedy = jax.device_get(found)
        check_finite(chunk_log_probability, model.dtype)
        log_probability += chunk_log_probability
        greedy &= chunk_greedy
        begin += length
    return [(float(p), bool(g)) for p, g in zip(log_probability, greedy, strict=True)][: len(pairs)]


@functools.partial(jit_on_mesh, static_argnames="model", donate_argnames="state")
def _score_chunk(model, params, state, tokens, lengths, targets, first):
    """Reads tokens int32[B, T]; scores targets[:, first : lengths].

    Returns the state, log-probabilities float32[B], and bool[B], whether all are greedy.
    """
    variables = {"params": params}
    x, state = model.apply(variables, tokens, state, lengths=lengths, method="features")
    place = jnp.arange(tokens.shape[1])[None]
    counts = (place >= first[:, None]) & (place < lengths[:, None])

    def block(inputs):
        x, targets, counts = inputs

        def measure():
            logits = model.apply(variables, x, method="logits")
            chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
            log_probability = chosen - jax.nn.logsumexp(logits, axis=-1)
            greedy = targets == jnp.argmax(logits, axis=-1)
            return jnp.where(counts, log_probability, 0).sum(1), (greedy | ~counts).all(1)

        def skip():
            return jnp.zeros(len(x)), jnp.ones(len(x), bool)

        # The head is the most expensive layer: contexts go without it.
        return lax.cond(counts.any(), measure, skip)

    def split(x):
        size = min(_HEAD_BLOCK, x.shape[1])
        return x.reshape(x.shape[0], -1, size, *x.shape[2:]).swapaxes(0, 1)

    log_probability, greedy = lax.map(block, (split(x), split(targets), split(counts)))
    return constrain_state(state), *replicate((log_probability.sum(0), greedy.all(0)))
