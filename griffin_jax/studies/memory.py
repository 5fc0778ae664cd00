"""The memory in the states of a model, shown by putting another text's states in their place.

Rows are read up to a token; then some channels of some recurrent layers get the state that another row
has there, and all rows are read on. How the loss of later tokens changes, and how far the model's
predictions move, is what it reads from that memory, and how much later. Nothing else is touched: the
keys and values within the attention window, the convolutions and all other channels are the row's own.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.fields import check_fields, field
from griffin_jax.models import RecurrentState, State
from griffin_jax.tracing import memory_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryStudy:
    """Settings.

    Attributes:
      before: Tokens that are read before the swap.
      after: Tokens that are read behind it.
      rows: Rows of text, each of which gets the state of the next.
      edges: Distances from the swap between which effects are averaged, from 0, up to `after`.
      lengths: Memory lengths in tokens between which channels are grouped, from 0; the last group is
        all beyond.
    """

    before: int = field(512, at_least=1)
    after: int = field(1536, at_least=2)
    rows: int = field(8, at_least=2)
    edges: tuple[int, ...] = field((0, 16, 64, 256, 512, 1024, 1536), filled=True)
    lengths: tuple[int, ...] = field((0, 16, 64, 256), filled=True)

    def __post_init__(self):
        check_fields(self)
        for name in ("edges", "lengths"):
            values = getattr(self, name)
            if values[0] or any(b <= a for a, b in itertools.pairwise(values)):
                raise ValueError(f"{name} must rise from 0, got {list(values)}")
        if self.edges[-1] > self.after:
            raise ValueError(
                f"edges end at {self.edges[-1]}, beyond the {self.after} tokens behind the swap (after)"
            )


@dataclasses.dataclass(frozen=True)
class Effect:
    """The effect of a swap.

    Attributes:
      layers: The layers in which states were swapped.
      group: The channels that were swapped, in words.
      channels: How many, in all layers together.
      loss: By distance, the change of the loss in nats per token, in the mean.
      loss_error: The standard errors of those means over rows.
      divergence: By distance, the mean KL divergence of the next token's distribution from the
        undisturbed one, in nats.
    """

    layers: tuple[int, ...]
    group: str
    channels: int
    loss: tuple[float, ...]
    loss_error: tuple[float, ...]
    divergence: tuple[float, ...]


def rows_of(documents: Iterable[str], tokenizer: Any, study: MemoryStudy) -> np.ndarray:
    """Cuts rows for `measure` from texts, one of each in turn.

    Args:
      documents: Texts.
      tokenizer: Has `encode`.
      study: The settings.

    Returns:
      int32[rows, before + after + 1].

    Raises:
      ValueError: the texts are too short for so many rows.
    """
    length = study.before + study.after + 1
    cut = [_pieces(tokenizer.encode(text), length) for text in documents]
    # One of each document in turn, so that rows that lie beside one another are of two texts.
    rows = [row for turn in itertools.zip_longest(*cut) for row in turn if row is not None]
    if len(rows) < study.rows:
        raise ValueError(
            f"the texts hold {len(rows)} rows of {length} tokens, fewer than rows={study.rows}; give "
            "more text or fewer rows"
        )
    return np.array(rows[: study.rows], np.int32)


def _pieces(tokens, length):
    return [tokens[i : i + length] for i in range(0, len(tokens) - length + 1, length)]


def recurrent_layers(state: State) -> tuple[int, ...]:
    """Returns the layers whose state is that of an RG-LRU."""
    return tuple(i for i, block in enumerate(state.blocks) if isinstance(block, RecurrentState))


def swap(state: State, channels: Mapping[int, jax.Array]) -> State:
    """Gives each row the state of the next one, the last that of the first.

    Args:
      state: The state of B rows.
      channels: By layer, bool[R], those that are swapped.
    """

    def of(layer, block):
        if layer not in channels:
            return block
        other = jnp.roll(block.hidden, -1, axis=0)
        return block.replace(hidden=jnp.where(channels[layer][None], other, block.hidden))

    blocks = tuple(of(layer, block) for layer, block in enumerate(state.blocks))
    return dataclasses.replace(state, blocks=blocks)


def measure(
    lm: Any, rows: np.ndarray, study: MemoryStudy, told: Callable[[Effect], None] = lambda _: None
) -> dict[str, Any]:
    """Measures what swaps do in each layer, in each group of channels, and in all.

    Args:
      lm: A `LanguageModel` with RG-LRU blocks.
      rows: int32[rows, before + after + 1], tokens of texts.
      study: The settings.
      told: Called of each effect as it is known.

    Returns:
      Memory lengths of channels by layer, the undisturbed loss by distance, and the effects; ready
      for JSON.

    Raises:
      ValueError: the rows are of another shape, or the model has no RG-LRU.
    """
    expected = study.rows, study.before + study.after + 1
    if rows.shape != expected:
        raise ValueError(f"rows must be {list(expected)} tokens, got {list(rows.shape)}")
    before, after = np.split(rows[:, :-1], [study.before], axis=1)
    targets = rows[:, study.before + 1 :]
    read = lm.trace(before, "*.rg_lru.log_decay")
    layers = recurrent_layers(read.state)
    if not layers:
        raise ValueError("the model has no RG-LRU whose state could be swapped")
    lengths = {i: np.asarray(memory_length(x)) for i, x in read.layers("*.log_decay").items()}

    @jax.jit
    def run(lm, state, base):
        logits = jax.nn.log_softmax(lm.apply(after, state)[0])
        loss = -jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        base = logits if base is None else base
        return loss, jnp.sum(jnp.exp(base) * (base - logits), axis=-1), logits

    plain, _, base = run(lm, read.state, None)
    effects = []
    for chosen, group, channels in _swaps(layers, lengths, study.lengths):
        if not any(map(np.any, channels.values())):
            continue
        loss, divergence, _ = run(lm, swap(read.state, channels), base)
        by_row = _by_distance(np.asarray(loss - plain), study.edges)
        effect = Effect(
            chosen,
            group,
            int(sum(map(np.sum, channels.values()))),
            tuple(by_row.mean(axis=0).tolist()),
            tuple((by_row.std(axis=0, ddof=1) / len(by_row) ** 0.5).tolist()),
            tuple(_by_distance(np.asarray(divergence), study.edges).mean(axis=0).tolist()),
        )
        effects.append(dataclasses.asdict(effect))
        told(effect)
    return {
        "memory_lengths": {
            i: np.sort(x).astype(float).round(2).tolist() for i, x in lengths.items()
        },
        "edges": list(study.edges),
        "loss": _by_distance(np.asarray(plain), study.edges).mean(axis=0).tolist(),
        "effects": effects,
    }


def _swaps(layers, lengths, edges) -> Iterator[tuple[tuple[int, ...], str, dict[int, np.ndarray]]]:
    """Yields all layers, each group of all layers, each layer, and the longest memories of each
    layer.
    """
    every = {i: np.ones(len(lengths[i]), bool) for i in layers}
    yield layers, "all", every
    ends = [*edges[1:], np.inf]
    for begin, end in zip(edges, ends, strict=True):
        name = f"{begin} to {end} tokens" if np.isfinite(end) else f"beyond {begin} tokens"
        group = {i: (lengths[i] >= begin) & (lengths[i] < end) for i in layers}
        yield layers, name, group
    for i in layers:
        yield (i,), "all", {i: every[i]}
    for i in layers:
        yield (i,), f"beyond {edges[-1]} tokens", {i: lengths[i] >= edges[-1]}


def _by_distance(values: np.ndarray, edges: Sequence[int]) -> np.ndarray:
    """Returns the means [B, edges - 1] of values [B, T] between distances."""
    parts = itertools.pairwise(edges)
    return np.stack([values[:, a:b].mean(axis=1) for a, b in parts], axis=1)
