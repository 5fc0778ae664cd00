"""Log-probabilities of the tokens of one text, each after those before it, and what was likelier."""

import dataclasses
import functools
from collections.abc import Generator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.devices import replicate
from griffin_jax.inference import prefill
from griffin_jax.inference.context import Context
from griffin_jax.inference.drawing import most_likely
from griffin_jax.inference.head_blocks import map_positions
from griffin_jax.inference.overflow import check_finite
from griffin_jax.inference.plan import TOPS
from griffin_jax.models import Griffin
from griffin_jax.sharding import jit_on_mesh, mesh_of_all


@dataclasses.dataclass(frozen=True)
class PromptScores:
    """The scores that a model gives the tokens of a text.

    Attributes:
      logprobs: float32[T - 1], those of the second token and those after it.
      tops: For each of them the most likely tokens in its place, (token, log-probability); None
        where none were asked for.
      context: The text, read up to its last token; None on a mesh.
    """

    logprobs: np.ndarray
    tops: list[list[tuple[int, float]]] | None
    context: Context | None


def score_prompt(
    model: Griffin, params: dict, tokens: Sequence[int], top: int = 0
) -> Generator[None, None, PromptScores]:
    """Reads a text, and scores each of its tokens but the first.

    Args:
      model: The model.
      params: Its parameters.
      tokens: Token ids, at least one.
      top: How many of the most likely tokens are told of each place, 20 at most.

    Yields:
      Nothing, after each call of the device that has been dispatched: another may come between.

    Returns:
      The scores.

    Raises:
      ValueError: an id is outside of the vocabulary, or logits are NaN or infinite.
    """
    prefill.check_tokens(tokens, model.config.vocab_size, "prompt")
    count = min(next(n for n in TOPS if n >= top), model.config.vocab_size)
    size = prefill.batch_size_for(1, params)
    state = prefill.fresh_state(model, params, size, len(tokens))
    found, begin, read = [], 0, list(tokens[:-1])
    for length in prefill.chunk_lengths(len(read), size):
        chunk = prefill.put_chunk(params, *prefill.pad([read], size, begin, length))
        x, state = prefill.read_features(model, params, state, *chunk)
        targets, _ = prefill.pad([tokens[1:]], size, begin, length)
        targets = prefill.put(params, targets, "batch", "time")
        found.append(_measure(model, params, x, targets, count))
        begin += length
        yield
    found = [jax.tree.map(lambda x: x[0], jax.device_get(part)) for part in found]
    logprobs = np.concatenate([part[0] for part in found] or [np.zeros(0, np.float32)])[: len(read)]
    check_finite(logprobs, model.dtype)
    tops: list[list[tuple[int, float]]] | None = None
    if top:
        tops = [
            list(zip(ids[:top].tolist(), values[:top].tolist(), strict=True))
            for _, *rows in found
            for ids, values in zip(*rows, strict=True)
        ][: len(read)]
    context = None
    if size == 1 and mesh_of_all(params) is None:
        context = Context(state, tuple(map(int, tokens)), len(read))
    return PromptScores(logprobs, tops, context)


@functools.partial(jit_on_mesh, static_argnames=("model", "count"))
def _measure(model, params, x, targets, count):
    """Returns how likely targets int32[B, T] are after x [B, T, D], and the `count` most likely tokens."""

    def score_targets(x, targets):
        logits = model.apply({"params": params}, x, method="logits")
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)
        logprob = (chosen - jax.nn.logsumexp(logits, axis=-1, keepdims=True))[..., 0]
        if not count:
            return (logprob,)
        ids, values = most_likely(logits.reshape(-1, logits.shape[-1]), count)
        shape = (*logprob.shape, count)
        return logprob, ids.reshape(shape), values.reshape(shape)

    return replicate(map_positions(score_targets, x, targets))
