"""Loss of a model on whole documents, with the state carried through each of them."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from griffin_jax.config import ATTENTION, GriffinConfig, check_dtype
from griffin_jax.devices import replicate
from griffin_jax.fields import check_value
from griffin_jax.inference import prefill
from griffin_jax.inference.head_blocks import map_positions
from griffin_jax.inputs import check_tokens
from griffin_jax.models import Griffin
from griffin_jax.sharding import batch_shards, jit_on_mesh, mesh_of
from griffin_jax.training.encoding import Encoder


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
    """Returns -ln p of every token but the first of each document, given all before it in the
    document.

    Documents are read `rows` at a time in chunks, state passed on, so memory does not depend on
    their length; nor do the logits of a whole chunk ever exist (`map_positions`).

    Args:
      config: The model's shape.
      params: Its parameters; where they lie on a mesh, it runs there.
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
    found = _read_documents(config, (params,), documents, dtype, chunk, rows, capacity)
    return [losses for (losses,) in found]


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
      params: The parameters of the model in question, such as a packed one.
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
    found = _read_documents(config, (params, reference), documents, dtype, chunk, rows, capacity)
    return [np.stack(measures, axis=-1) for measures in found]


def _read_documents(config, models, documents, dtype, chunk, rows, capacity):
    """Returns what `_measure` finds at every token but the first of each document.

    Args:
      config: The shape of the models.
      models: The parameters of one model, or of two; each may lie on the mesh that all lie on.
      documents: Token ids.
      dtype: The dtype of activations.
      chunk: Tokens per call.
      rows: Documents read at the same time.
      capacity: Keys kept when the attention window is unbounded.

    Returns:
      For each document, arrays float32[len(document) - 1].
    """
    model = Griffin(config, dtype=check_dtype(dtype))
    rows = min(check_value("rows", rows, int, at_least=1), max(len(documents), 1))
    check_value("chunk", chunk, int, at_least=1)
    for i, document in enumerate(documents):
        if len(document) < 2:
            raise ValueError(f"document {i} has no token to predict; it holds no text")
        check_tokens(document, config.vocab_size, f"document {i}")
    shards = 1 if (mesh := mesh_of(models)) is None else batch_shards(mesh)
    size = -(-rows // shards) * shards  # the rows beyond are padding
    found: list = [None] * len(documents)
    by_length = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    for first in range(0, len(by_length), rows):
        group = by_length[first : first + rows]
        inputs = [documents[i][:-1] for i in group]
        targets = [documents[i][1:] for i in group]
        states = [prefill.state_with_slots(model, params, size, capacity) for params in models]
        parts = []
        for begin in range(0, len(inputs[-1]), chunk):
            tokens = prefill.put_chunk(models[0], *prefill.pad(inputs, size, begin, chunk))
            expected, _ = prefill.put_chunk(models[0], *prefill.pad(targets, size, begin, chunk))
            features = []
            for k, params in enumerate(models):
                x, states[k] = prefill.read_features(model, params, states[k], *tokens)
                features.append(x)
            parts.append(_measure(model, models, features, expected))
        joined = [np.concatenate(part, axis=1) for part in zip(*jax.device_get(parts), strict=True)]
        for row, i in enumerate(group):
            found[i] = [part[row, : len(documents[i]) - 1] for part in joined]
    return found


@functools.partial(jit_on_mesh, static_argnames="model")
def _measure(model, models, features, targets):
    """Returns -ln p of targets [B, T] under the first of one or two models, and their divergence.

    Args:
      model: `Griffin`.
      models: The parameters of each.
      features: What the output head of each reads, [B, T, D].
      targets: int32[B, T].

    Returns:
      float32[B, T]; and where there is a second model, the Kullback-Leibler divergence of the first
      one's distribution from that of the second, float32[B, T].
    """

    def measure(targets, *features):
        logits = [
            model.apply({"params": params}, x, method="logits")
            for params, x in zip(models, features, strict=True)
        ]
        normalizers = [jax.nn.logsumexp(x, axis=-1, keepdims=True) for x in logits]
        chosen = jnp.take_along_axis(logits[0], targets[..., None], axis=-1)
        loss = (normalizers[0] - chosen)[..., 0]
        if len(models) == 1:
            return (loss,)
        actual, expected = (x - z for x, z in zip(logits, normalizers, strict=True))
        return loss, jnp.sum(jnp.exp(expected) * (expected - actual), axis=-1)

    return replicate(map_positions(measure, targets, *features))


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
    losses = np.asarray(document_losses(config, params, pieces, **options))
    mean = losses.mean(axis=0, dtype=np.float64)
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
