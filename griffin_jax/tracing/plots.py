"""Plots of what a model computes for one text: decays, gates, attention, logit lens, memory."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from griffin_jax.tracing.recurrence import (
    decay_spectrum,
    head_attention,
    memory_length,
    share_of_state,
)
from griffin_jax.tracing.trace import Trace

# The places that the plots read.
NAMES = (
    "*.rg_lru.log_decay",
    "*.rg_lru.decay",
    "*.rg_lru.input",
    "*.rg_lru.*_gate",
    "*.attention.weights",
    "blocks.*.logits",
)
_MOST_LABELS = 64  # tokens whose text stands at an axis
_LENS_TOKENS = 64  # the last of a text


@dataclasses.dataclass(frozen=True)
class Reading:
    """A text and what a model computed for it.

    Attributes:
      tokens: int32[T].
      texts: What each token is in writing.
      trace: The run of one row, these tokens, with the places of `NAMES` that the model has.
      token: The token whose memory is looked at.
      heads: The diagonal blocks of the gates, N.
    """

    tokens: np.ndarray
    texts: Sequence[str]
    trace: Trace
    token: int
    heads: int

    def recurrences(self, name: str) -> dict[int, np.ndarray]:
        """Returns a place of the RG-LRU in each layer that has one, [1, T, R]."""
        return {i: np.asarray(x) for i, x in self.trace.layers(f"*.rg_lru.{name}").items()}


def spectrum(plt: Any, reading: Reading) -> Any:
    """Plots tokens until a channel's state has fallen to 1/e, for the channels of each layer in order."""
    figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
    layers = reading.recurrences("log_decay")
    for layer, color in zip(layers, _colors(plt, len(layers)), strict=True):
        length = np.sort(np.asarray(memory_length(layers[layer])))
        axis.plot(np.arange(1, len(length) + 1) / len(length), length, color=color, label=layer)
    axis.set(yscale="log", xlabel="share of channels", ylabel="memory length, tokens")
    axis.legend(title="layer", fontsize=8, ncols=2)
    axis.grid(alpha=0.3, which="both")
    return figure


def decays(plt: Any, reading: Reading) -> Any:
    """Draws how many channels of each layer have which decay."""
    figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
    layers = decay_spectrum(reading.recurrences("log_decay"))
    edges = np.linspace(0, 1, 41)
    counts = np.stack([np.histogram(decay, edges)[0] for decay in layers.values()])
    image = axis.imshow(counts, aspect="auto", cmap="viridis", extent=(0, 1, len(layers), 0))
    axis.set_yticks(np.arange(len(layers)) + 0.5, [str(layer) for layer in layers])
    axis.set(xlabel="decay per token", ylabel="layer")
    figure.colorbar(image, ax=axis, label="channels")
    return figure


def gates(plt: Any, reading: Reading) -> Any:
    """Draws the mean over channels of each layer's gates, at every token."""
    figure, axes = plt.subplots(2, 1, figsize=(9, 5.4), layout="constrained", sharex=True)
    for axis, name in zip(axes, ("recurrence_gate", "input_gate"), strict=True):
        layers = reading.recurrences(name)
        _matrix(figure, axis, [x[0].mean(axis=-1) for x in layers.values()], layers, "viridis")
        axis.set(title=name.replace("_", " "), ylabel="layer")
    _label(axes[-1], reading.texts)
    return figure


def attention(plt: Any, reading: Reading) -> Any:
    """Draws what each token reads of those before: through the state in one layer, by attention in
    another.
    """
    decays, inputs = reading.recurrences("decay"), reading.recurrences("input")
    panels = {
        layer: ("RG-LRU", np.asarray(head_attention(decay, inputs[layer], reading.heads)))
        for layer, decay in decays.items()
    }
    weights = reading.trace.layers("*.attention.weights")
    panels |= {layer: ("attention", np.asarray(x)) for layer, x in weights.items()}
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.6 * columns, 2.8 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (layer, (kind, heads)) in zip(axes.flat, sorted(panels.items()), strict=False):
        axis.imshow(np.sqrt(heads[0].mean(axis=0)), cmap="magma", interpolation="nearest")
        axis.set_title(f"layer {layer}, {kind}", fontsize=9)
    figure.supxlabel("token that is read")
    figure.supylabel("token that reads")
    return figure


def lens(plt: Any, reading: Reading) -> Any:
    """Plots the bits for the next token of the text, as the residual stream behind each layer would predict it."""
    begin, end = max(0, len(reading.tokens) - 1 - _LENS_TOKENS), len(reading.tokens) - 1
    layers = reading.trace.layers("blocks.*.logits")
    rows = [_bits(x[0, begin:end], reading.tokens[begin + 1 :]) for x in layers.values()]
    figure, axis = plt.subplots(figsize=(10, 4.4), layout="constrained")
    _matrix(figure, axis, rows, layers, "viridis_r")
    axis.set(ylabel="behind layer")
    _label(axis, reading.texts[begin + 1 :])
    return figure


def memory(plt: Any, reading: Reading) -> Any:
    """Draws the share that one token's input has in the states of later tokens, in each layer."""
    figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
    decays, inputs = reading.recurrences("decay"), reading.recurrences("input")
    for layer, color in zip(decays, _colors(plt, len(decays)), strict=True):
        share = np.asarray(share_of_state(decays[layer], inputs[layer], reading.token))[0]
        axis.plot(np.arange(len(share)) + 1, share, color=color, label=layer)
    axis.set(xscale="log", yscale="log", ylim=(1e-4, 1.2))
    axis.set(xlabel="distance to the later token, plus 1", ylabel="share of the state")
    axis.legend(title="layer", fontsize=8, ncols=2)
    axis.grid(alpha=0.3, which="both")
    return figure


# By file name, in the order of the page.
PLOTS: dict[str, Callable[[Any, Reading], Any]] = {
    "spectrum": spectrum,
    "decays": decays,
    "gates": gates,
    "attention": attention,
    "lens": lens,
    "memory": memory,
}


def _bits(logits, targets):
    logits = np.asarray(logits, np.float64)
    largest = logits.max(axis=-1)
    total = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=-1))
    return (total - logits[np.arange(len(targets)), targets]) / np.log(2)


def _colors(plt, count):
    return plt.get_cmap("viridis")(np.linspace(0, 0.95, count))


def _matrix(figure, axis, rows, layers, colors):
    image = axis.imshow(np.stack(rows), aspect="auto", cmap=colors, interpolation="nearest")
    axis.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    figure.colorbar(image, ax=axis)


def _label(axis, texts):
    if len(texts) <= _MOST_LABELS:
        shown = [text.replace("$", r"\$") for text in texts]
        axis.set_xticks(range(len(texts)), shown, rotation=90, fontsize=7)
    else:
        axis.set_xlabel("token")
