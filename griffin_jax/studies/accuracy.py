"""The share of a task's answers that models get right, at any length."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.devices import platform
from griffin_jax.models import Griffin, init_state
from griffin_jax.studies.task import Task, arrays_of, draw_batch
from griffin_jax.studies.together import TEST, kernels_of_runs, mapped

_CHUNK = 1024  # tokens in a call where attention has no kernel; longer rows go on from a state
_TOKENS = 2**16  # of a call and a run, at most, where rows are longer than that over the batch


def accuracy(
    model: Griffin, params: Any, task: Task, *, rows: int, batch_size: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Measures runs of a model on examples that they were not trained on.

    Args:
      model: The model.
      params: The runs' parameters, stacked.
      task: The task, of whatever length.
      rows: How many examples, the same for all runs.
      batch_size: Examples in a call, at most; fewer where they are long.
      seed: The examples' seed.

    Returns:
      For each run: `tokens`, the share of answer tokens that are the most likely ones; `rows`, the
      share of examples with no wrong one; and `loss` in nats per answer token. Of text there are
      `edges`, powers of 2 up to the row's length, and `by_position`, the loss between them by how
      much of a document was read, too.
    """
    runs = len(jax.tree.leaves(params)[0])
    batch_size = max(1, min(batch_size, rows, _TOKENS // task.length))
    key = jax.random.fold_in(jax.random.key(seed), TEST)
    arrays = arrays_of(task, "heldout")
    # Attention in a kernel has no scores in memory, so that rows are read whole.
    whole = platform() == "gpu" and model.dtype == jnp.bfloat16
    chunk = task.length if whole else min(task.length, _CHUNK)
    right, exact = np.zeros(runs), np.zeros(runs)
    edges = np.unique(np.array([0, *2 ** np.arange(6, int(np.log2(task.length)) + 1), task.length]))
    sums, counts = np.zeros((runs, len(edges) - 1)), np.zeros(len(edges) - 1)
    answers = measured = 0
    for number in range(-(-rows // batch_size)):
        batch = _draw(task, jax.random.fold_in(key, number), batch_size, arrays)
        state = None
        if task.length > chunk:
            state = init_state(model.config, batch_size, model.dtype, capacity=task.length)
            state = jax.tree.map(lambda x: jnp.broadcast_to(x, (runs, *x.shape)), state)
        hits, due = np.zeros((runs, batch_size)), np.asarray(batch["mask"]).sum(axis=1)
        for at in range(0, task.length, chunk):
            part = {name: x[:, at : at + chunk] for name, x in batch.items()}
            state, found, nll = _read(model, bool(arrays), runs, params, state, part)
            hits += np.asarray(found)
            place = np.searchsorted(edges, np.asarray(part["positions"]), side="right") - 1
            np.add.at(counts, place, np.asarray(part["mask"]))
            for total, losses in zip(sums, np.asarray(nll), strict=True):
                np.add.at(total, place, losses)
        right, answers = right + hits.sum(axis=1), answers + due.sum()
        exact, measured = exact + (hits == due).sum(axis=1), measured + batch_size
    totals = right / answers, exact / measured, sums.sum(axis=1) / answers
    found = [
        {"tokens": float(a), "rows": float(b), "loss": float(c)}
        for a, b, c in zip(*totals, strict=True)
    ]
    if arrays and counts.all():
        for run, by_position in zip(found, (sums / counts).tolist(), strict=True):
            run |= {"edges": edges.tolist(), "by_position": by_position}
    return found


@functools.partial(jax.jit, static_argnums=(0, 2))
def _draw(task, key, count, arrays):
    return draw_batch(task, key, count, arrays)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _read(model, packed, runs, params, state, batch):
    def run(params, state):
        logits, state = model.apply(
            {"params": params}, batch["inputs"], state, positions=batch["positions"]
        )
        logits = jax.nn.log_softmax(logits)
        hits = (jnp.argmax(logits, axis=-1) == batch["targets"]) * batch["mask"]
        nll = -jnp.take_along_axis(logits, batch["targets"][..., None], axis=-1)[..., 0]
        return state, hits.sum(axis=1), nll * batch["mask"]

    with kernels_of_runs(packed, runs):
        return mapped(run, runs)(params, state)
