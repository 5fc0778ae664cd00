"""Static batches, which the engine stands beside: as many texts as fit, until the last one ends."""

from collections.abc import Sequence

import jax
import numpy as np

from griffin_jax.inference import prefill
from griffin_jax.inference.decode import draw_burst, empty_rows, row_keys
from griffin_jax.inference.drawing import Needs
from griffin_jax.language_model import LanguageModel


def run(
    lm: LanguageModel, requests: Sequence[tuple[list[int], int]], batch_size: int, burst: int
) -> list[list[int]]:
    """Writes greedily after prompts, batch by batch.

    Prompts of a batch are read together, padded to the longest. All rows are then drawn until the
    last one ends: those that ended before go on costing what they did. The next burst is under way
    while the last one is looked at.

    Args:
      lm: The model, without a tokenizer.
      requests: The tokens of a prompt, and how many are drawn, of each.
      batch_size: Texts of a batch.
      burst: Steps of a dispatch.

    Returns:
      What was drawn after each prompt.
    """
    found = []
    for begin in range(0, len(requests), batch_size):
        found += _batch(lm, requests[begin : begin + batch_size], burst)
    return found


def _batch(lm, requests, burst):
    model, params = lm.model, lm.decoding_params
    prompts, counts = zip(*requests, strict=True)
    size = prefill.batch_size_for(len(prompts), params)
    room = max(len(prompt) + count for prompt, count in requests)
    rows = empty_rows(model, params, size, room)
    state = prefill.read(model, params, rows.state, [prompt[:-1] for prompt in prompts])
    last = np.zeros(size, np.int32)
    last[: len(prompts)] = [prompt[-1] for prompt in prompts]
    alive = np.arange(size) < len(prompts)
    limit = np.full(size, max(counts), np.int32)
    keys = np.zeros((size, 2), np.uint32)
    keys[: len(prompts)] = row_keys(0, len(prompts))
    given = {"token": last, "alive": alive, "limit": limit, "keys": keys}
    rows = rows.replace(state=state, **{k: prefill.put(params, v) for k, v in given.items()})
    parts, coming = [], []
    for steps in _lengths(max(counts), burst):
        rows, drawn = draw_burst.on(
            lm.mesh, model, burst, Needs(), (), params, rows, np.ones(size, bool), np.int32(steps)
        )
        coming.append((drawn[0], steps))
        if len(coming) > 1:
            parts.append(_receive(*coming.pop(0)))
    parts += [_receive(*one) for one in coming]
    tokens = np.concatenate(parts, axis=1)
    return [row[:count].tolist() for row, count in zip(tokens, counts, strict=False)]


def _lengths(total, burst):
    return [min(burst, total - begin) for begin in range(0, total, burst)]


def _receive(tokens, steps):
    return jax.device_get(tokens)[:, :steps]
