"""Long documents answered from chunks, of which a model's own certainty chooses one.

A recurrence keeps a state of constant size, so that one pass over a long text loses what it held at its
beginning. Read in chunks, each of which the question is asked of in a fork, some chunk's state holds
the answer; and a model that finds it there is more certain than one that does not (OPRM,
arXiv:2505.07793). Here the long text is of more entries than models were trained
on: a phonebook, or fillers with a needle among them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.fields import check_fields, check_value, field
from griffin_jax.models import Griffin, init_state
from griffin_jax.studies.claims import check_claims
from griffin_jax.studies.task import LongText
from griffin_jax.studies.together import TEST


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongDocumentsStudy:
    """Settings.

    Attributes:
      title: What it is about.
      paper: What the paper did and says.
      shorter: What is run otherwise than in the paper, for captions.
      study: The config whose models answer, of a task that is a `LongText`.
      models: Which of its models.
      entries: Entries of a chunk: names of a phonebook, tokens around a needle.
      chunks: Chunks that a text has, one number or more.
      rows: Texts of each size.
      batch_size: Texts in a call.
      claims: Statements to test; see `claims.check_claims`.
    """

    title: str = field(filled=True)
    paper: str = ""
    shorter: str = ""
    study: str = field("study_phonebook.py", filled=True)
    models: tuple[str, ...] = field(("Griffin", "Hawk"), filled=True)
    entries: int = field(48, at_least=3)
    chunks: tuple[int, ...] = field((1, 2, 4, 8), filled=True)
    rows: int = field(128, at_least=1)
    batch_size: int = field(16, at_least=1)
    claims: tuple[Any, ...] = ()

    def __post_init__(self):
        check_fields(self)
        for i, number in enumerate(self.chunks):
            check_value(f"chunks[{i}]", number, int, at_least=1)
        check_claims(self.claims)


def texts(task: LongText, entries: int, count: int, seed: int) -> dict[str, np.ndarray]:
    """Draws long texts with a question each.

    Args:
      task: Its other knobs.
      entries: Entries of a text.
      count: How many texts.
      seed: Their seed.

    Returns:
      `text` int32[count, entries, E], `question` int32[count, Q] and `answer` int32[count, number].
    """
    task = task.with_entries(entries)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), TEST), count)
    drawn = jax.jit(jax.vmap(task.draw))(keys)
    inputs, targets = np.asarray(drawn.inputs), np.asarray(drawn.targets)
    # The answer is what counts last; its first token is the target of the question's last one.
    asked = np.flatnonzero(drawn.answer[0])[-1] + 2 - task.number
    text, question = inputs[:, :asked], inputs[:, asked - task.question : asked]
    text = text[:, : -task.question][:, -entries * task.entry :]
    return {
        "text": text.reshape(count, entries, task.entry),
        "question": question,
        "answer": targets[:, asked - 1 : asked - 1 + task.number],
    }


def measure(
    study: LongDocumentsStudy,
    task: LongText,
    models: dict[str, tuple[Griffin, Any]],
    told: Callable[[str], None] = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """Yields how many answers are right in one pass and from chunks, by model, size and seed.

    Args:
      study: The settings.
      task: The task that the models were trained on.
      models: By name, a model and the stacked parameters of its runs.
      told: Called of each row.
    """
    for chunks in study.chunks:
        drawn = texts(task, study.entries * chunks, study.rows, seed=0)
        for name, (model, stacked) in models.items():
            for run in range(len(jax.tree.leaves(stacked)[0])):
                params = jax.tree.map(lambda x, run=run: x[run], stacked)
                whole, _ = _answers(study, model, params, drawn, 1)
                found, certain = _answers(study, model, params, drawn, chunks)
                place = np.argmax(certain, axis=1)
                chosen = np.take_along_axis(found, place[:, None, None], axis=1)[:, 0]
                right = np.all(found == drawn["answer"][:, None], axis=-1)
                row = {
                    "model": name,
                    "run": run,
                    "chunks": chunks,
                    "tokens": int(drawn["text"][0].size + drawn["question"].shape[1]),
                    "one pass": float(np.all(whole[:, 0] == drawn["answer"], axis=-1).mean()),
                    "chunks read": float(np.all(chosen == drawn["answer"], axis=-1).mean()),
                    "best chunk": float(np.any(right, axis=1).mean()),
                }
                told(f"{row}")
                yield row


def _answers(study, model, params, drawn, chunks):
    """Returns greedy answers [rows, chunks, number] and the log-probabilities of what was chosen."""
    found, certain = [], []
    for begin in range(0, study.rows, study.batch_size):
        text, question = (
            drawn[name][begin : begin + study.batch_size] for name in ("text", "question")
        )
        rows = len(text)
        parts = text.reshape(rows * chunks, -1)
        asked = np.repeat(question, chunks, axis=0)
        tokens, total = _answer(model, params, parts, asked, drawn["answer"].shape[1])
        found.append(np.asarray(tokens).reshape(rows, chunks, -1))
        certain.append(np.asarray(total).reshape(rows, chunks))
    return np.concatenate(found), np.concatenate(certain)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _answer(model, params, texts, questions, count):
    """Reads texts [B, T], asks in a fork of each, and goes on greedily for `count` tokens."""
    rows, time = texts.shape
    capacity = time + questions.shape[1] + count
    state = init_state(model.config, rows, model.dtype, capacity=capacity)
    variables = {"params": params}
    _, state = model.apply(variables, texts, state, method="features")
    logits, state = model.apply(variables, questions, state)

    def likeliest(logits):
        likely = jax.nn.log_softmax(logits[:, -1])
        return jnp.argmax(likely, axis=-1), jnp.max(likely, axis=-1)

    def step(carry, _):
        token, state = carry
        logits, state = model.apply(variables, token[:, None], state)
        token, likelihood = likeliest(logits)
        return (token, state), (token, likelihood)

    token, likelihood = likeliest(logits)
    _, (tokens, more) = jax.lax.scan(step, (token, state), length=count - 1)
    return jnp.concatenate([token[None], tokens]).T, likelihood + more.sum(axis=0)
