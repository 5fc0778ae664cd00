"""Loss of a model on whole documents, with the state carried through each of them."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from griffin_jax.config import ATTENTION, GriffinConfig, check_dtype
from griffin_jax.fields import check_value
from griffin_jax.inputs import check_tokens
from griffin_jax.models import Griffin, init_state


class Encoder(Protocol):
    """What is asked of a tokenizer here."""

    def encode(self, text: str, bos: bool = True) -> list[int]: ...


def document_losses(
    config: GriffinConfig,
    params: Any,
    documents: Sequence[Sequence[int]],
    *,
    dtype: DTypeLike = jnp.bfloat16,
    chunk: int = 1024,
    rows: int = 8,
    capacity: int | None = None,
) -> list[np.ndarray]:
    """-ln p of every token but the first of each document, given all before it in the document.

    Documents are read `rows` at a time in chunks, state passed on, so memory does not depend on
    their length.

    Args:
      config: The model's shape.
      params: Its parameters.
      documents: Token ids, at least two each; BOS first.
      dtype: The dtype of activations. Logits and losses are float32.
      chunk: Tokens per call.
      rows: Documents read at the same time.
      capacity: Needed when the attention window is unbounded: keys kept from chunk to chunk. A
        token then sees at least `capacity` and less than `capacity + chunk` tokens before it.

    Returns:
      float32[len(document) - 1] for each document.

    Raises:
      ValueError: the window is unbounded and no capacity is given, or a document has no token to
        predict or one outside of the vocabulary.
    """
    dtype, rows = check_dtype(dtype), check_value("rows", rows, int, at_least=1)
    rows = min(rows, max(len(documents), 1))
    return _read_documents(
        documents,
        config.vocab_size,
        lambda: init_state(config, rows, dtype, capacity),
        functools.partial(_chunk_losses, config, dtype, params),
        chunk,
        rows,
    )


def document_divergences(
    config: GriffinConfig,
    reference: Any,
    params: Any,
    documents: Sequence[Sequence[int]],
    *,
    dtype: DTypeLike = jnp.bfloat16,
    chunk: int = 256,
    rows: int = 8,
    capacity: int | None = None,
) -> list[np.ndarray]:
    """Returns how far a model is from another one, at every token but the first of each document.

    Args:
      config: The shape of both models.
      reference: The parameters that `params` are compared with.
      params: Those of the model in question, such as a packed one.
      documents: As for `document_losses`, and so are the rest.
      dtype: The dtype of activations.
      chunk: Tokens per call.
      rows: Documents read at the same time.
      capacity: Keys kept when the attention window is unbounded.

    Returns:
      float32[len(document) - 1, 2] for each document: the loss -ln p under `params`, and the
      Kullback-Leibler divergence, in nats, of their distribution from that of `reference`.

    Raises:
      ValueError: the window is unbounded and no capacity is given, or a document has no token to
        predict or one outside of the vocabulary.
    """
    dtype, rows = check_dtype(dtype), check_value("rows", rows, int, at_least=1)
    rows = min(rows, max(len(documents), 1))
    return _read_documents(
        documents,
        config.vocab_size,
        lambda: tuple(init_state(config, rows, dtype, capacity) for _ in range(2)),
        functools.partial(_chunk_divergences, config, dtype, (reference, params)),
        chunk,
        rows,
    )


def _read_documents(documents, vocab_size, fresh_state, measure, chunk, rows):
    """Returns what `measure` finds at each token, [len(document) - 1, ...] for each document.

    Args:
      documents: Token ids.
      vocab_size: Rows of the model's embedding.
      fresh_state: Gives the state before the first token of `rows` documents.
      measure: From the state, tokens int32[rows, chunk + 1] and lengths int32[rows] to an array
        [rows, chunk, ...] and the state after them.
      chunk: Tokens per call.
      rows: Documents read at the same time.
    """
    found: list[np.ndarray] = [np.zeros(0, np.float32)] * len(documents)
    check_value("chunk", chunk, int, at_least=1)
    for i, document in enumerate(documents):
        if len(document) < 2:
            raise ValueError(f"document {i} has no token to predict; it holds no text")
        check_tokens(document, vocab_size, f"document {i}")
    by_length = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    for first in range(0, len(by_length), rows):
        group = by_length[first : first + rows]
        state = fresh_state()
        longest = len(documents[group[-1]]) - 1
        tokens = np.zeros((rows, -(-longest // chunk) * chunk + 1), np.int32)
        lengths = np.zeros(rows, np.int32)
        for row, i in enumerate(group):
            tokens[row, : len(documents[i])] = documents[i]
            lengths[row] = len(documents[i]) - 1
        parts = []
        for begin in range(0, longest, chunk):
            part, state = measure(
                state, tokens[:, begin : begin + chunk + 1], np.clip(lengths - begin, 0, chunk)
            )
            parts.append(part)
        joined = np.concatenate(jax.device_get(parts), axis=1)
        for row, i in enumerate(group):
            found[i] = joined[row, : lengths[row]]
    return found


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _chunk_losses(config, dtype, params, state, tokens, lengths):
    logits, state = Griffin(config, dtype=dtype).apply(
        {"params": params}, tokens[:, :-1], state, lengths=lengths
    )
    chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen, state


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _chunk_divergences(config, dtype, models, states, tokens, lengths):
    model = Griffin(config, dtype=dtype)
    logps, after = [], []
    for params, state in zip(models, states, strict=True):
        logits, state = model.apply({"params": params}, tokens[:, :-1], state, lengths=lengths)
        logps.append(jax.nn.log_softmax(logits, axis=-1))
        after.append(state)
    expected, actual = logps
    chosen = jnp.take_along_axis(actual, tokens[:, 1:, None], axis=-1)[..., 0]
    divergence = jnp.sum(jnp.exp(expected) * (expected - actual), axis=-1)
    return jnp.stack([-chosen, divergence], axis=-1), tuple(after)


def bits_per_byte(
    config: GriffinConfig, params: Any, tokenizer: Encoder, texts: Sequence[str], **options: Any
) -> list[float]:
    """Returns the bits that the model needs per UTF-8 byte of each text.

    Every token of a text is predicted, given BOS and all tokens before it; the end of the text is
    not. For several texts together, weigh each by its bytes.

    Args:
      config: The model's shape.
      params: Its parameters.
      tokenizer: Encodes the texts.
      texts: Not empty, any of them.
      **options: See `document_losses`.
    """
    documents = [tokenizer.encode(text, bos=True) for text in texts]
    losses = document_losses(config, params, documents, **options)
    return [
        float(np.sum(loss, dtype=np.float64)) / math.log(2) / len(text.encode())
        for loss, text in zip(losses, texts, strict=True)
    ]


def loss_by_position(
    config: GriffinConfig,
    params: Any,
    tokenizer: Encoder,
    texts: Sequence[str],
    edges: Sequence[int],
    **options: Any,
) -> list[float]:
    """Returns the mean loss in nats per token at positions edges[i] <= p < edges[i + 1], one for each
    i.

    The texts are cut into pieces of `edges[-1]` tokens, each read from BOS on its own; what is
    left of a text is not used, so that every position averages over the same number of tokens.

    Args:
      config: The model's shape.
      params: Its parameters.
      tokenizer: Encodes the texts.
      texts: At least one must have `edges[-1]` tokens.
      edges: Rising positions; position 0 is the first token after BOS.
      **options: See `document_losses`.

    Raises:
      ValueError: no text is as long as that.
    """
    pieces = []
    for text in texts:
        bos, *tokens = tokenizer.encode(text, bos=True)
        starts = range(0, len(tokens) - edges[-1] + 1, edges[-1])
        pieces += [[bos, *tokens[start : start + edges[-1]]] for start in starts]
    if not pieces:
        raise ValueError(f"no text has {edges[-1]} tokens, the last edge: give longer texts")
    mean = np.mean(document_losses(config, params, pieces, **options), axis=0, dtype=np.float64)
    return [float(mean[a:b].mean()) for a, b in itertools.pairwise(edges)]


def longest_text(texts: Sequence[str], tokenizer: Encoder) -> int:
    """Returns the number of tokens of the longest text, without BOS."""
    return max((len(tokenizer.encode(text, bos=True)) - 1 for text in texts), default=0)


def check_edges(edges: Sequence[int], texts: Sequence[str], tokenizer: Encoder) -> None:
    """Checks what `loss_by_position` needs, before anything is measured.

    Raises:
      ValueError: the edges do not rise from 0 or more, or no text reaches the last.
    """
    rising = all(a < b for a, b in itertools.pairwise(edges))
    if len(edges) < 2 or edges[0] < 0 or not rising:
        raise ValueError(f"edges must be two positions or more, rising from 0, got {list(edges)}")
    if (longest := longest_text(texts, tokenizer)) < edges[-1]:
        raise ValueError(
            f"no text has {edges[-1]} tokens, the last edge (the longest has {longest}): give longer "
            "texts or a smaller last edge"
        )


def measure_texts(
    config: GriffinConfig,
    params: Any,
    tokenizer: Encoder,
    texts: Sequence[str],
    edges: Sequence[int],
    *,
    dtype: DTypeLike = jnp.bfloat16,
    chunk: int = 1024,
    cache: tuple[int, int] = (768, 256),
) -> dict[str, Any]:
    """Returns what held-out texts tell of a model, ready for JSON.

    Args:
      config: The model's shape.
      params: Its parameters.
      tokenizer: Encodes the texts.
      texts: At least one must have `edges[-1]` tokens.
      edges: See `loss_by_position`.
      dtype: The dtype of activations.
      chunk: Tokens per call.
      cache: Under unbounded attention, (capacity, chunk) of reading with a sliding cache: a token
        sees the last `capacity` to `capacity + chunk` tokens. Whole texts are read that way.

    Returns:
      `bits_per_byte` of all texts together and `bytes`, the same of each in `documents`, and
      `loss_by_position`, one mean in nats per token between neighboring `edges`. Under unbounded
      attention that is with every token before in sight, and `loss_by_position_sliding` is with the
      sliding cache.

    Raises:
      ValueError: as `check_edges`.
    """
    check_edges(edges, texts, tokenizer)
    unbounded = config.attention_window is None and ATTENTION in config.block_types
    whole = {"dtype": dtype, "chunk": chunk}
    sliding = {"dtype": dtype, "capacity": cache[0], "chunk": cache[1]} if unbounded else whole
    figures = bits_per_byte(config, params, tokenizer, texts, **sliding)
    sizes = [len(text.encode()) for text in texts]
    result = {
        "bits_per_byte": float(np.average(figures, weights=sizes)),
        "bytes": sum(sizes),
        "documents": [
            {"bytes": size, "bits_per_byte": figure}
            for size, figure in zip(sizes, figures, strict=True)
        ],
    }
    readings = {"loss_by_position": whole | {"capacity": edges[-1]} if unbounded else whole}
    if unbounded:
        readings["loss_by_position_sliding"] = sliding
    for name, options in readings.items():
        losses = loss_by_position(config, params, tokenizer, texts, edges, **options)
        result[name] = [
            {"from": a, "to": b, "nats_per_token": loss}
            for (a, b), loss in zip(itertools.pairwise(edges), losses, strict=True)
        ]
    return result
