"""How many answers of a task a model gets right, at any length."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.models import Griffin, init_state
from griffin_jax.sharding import jit_on_mesh
from griffin_jax.studies.task import Task, TaskRows

_CHUNK = 1024  # tokens in a call; longer rows go on from a state


def accuracy(
    model: Griffin, params: Any, task: Task, *, rows: int, batch_size: int, seed: int
) -> dict[str, float]:
    """Measures a model on examples that it was not trained on.

    Args:
      model: The model.
      params: Its parameters.
      task: The task, of whatever length.
      rows: How many examples.
      batch_size: Examples in a call, at most.
      seed: The examples' seed.

    Returns:
      `tokens`, the share of answer tokens that are the most likely ones; `rows`, the share of
      examples with no wrong one; and `loss` in nats per answer token.
    """
    source = TaskRows(task, seed, "test", rows)
    step = _step(model)
    right, whole, loss, count = 0, 0, 0.0, 0
    for begin in range(0, rows, batch_size):
        drawn = [source.row(0, i) for i in range(begin, min(begin + batch_size, rows))]
        batch = {name: np.stack([row[name] for row in drawn]) for name in drawn[0]}
        state = None
        if task.length > _CHUNK:
            state = init_state(model.config, len(drawn), model.dtype, capacity=task.length)
        hits, answers = np.zeros(len(drawn)), batch["mask"].sum(axis=1)
        for at in range(0, task.length, _CHUNK):
            part = [batch[name][:, at : at + _CHUNK] for name in ("inputs", "targets", "mask")]
            state, found, nll = step(params, state, *part)
            hits += np.asarray(found)
            loss += float(nll)
        right, count = right + hits.sum(), count + answers.sum()
        whole += (hits == answers).sum()
    return {
        "tokens": float(right / count),
        "rows": float(whole / rows),
        "loss": float(loss / count),
    }


def _step(model):
    def run(params, state, inputs, targets, mask):
        logits, state = model.apply({"params": params}, inputs, state)
        logits = jax.nn.log_softmax(logits)
        hits = (jnp.argmax(logits, axis=-1) == targets) * mask
        nll = -jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return state, hits.sum(axis=1), (nll * mask).sum()

    return jit_on_mesh(run)
