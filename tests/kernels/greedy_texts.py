"""Greedy texts by the kernels that serve this machine, beside those by the definitions.

    JAX_PLATFORMS=cuda,cpu python -m tests.kernels.greedy_texts

The model is small, with random weights, of a shape that every kernel of a decoding step serves. A text
by the definitions in float32 is the reference; kernels and definitions in bfloat16 write it again, and
part from it where their rounding decides. Both are printed, with the reference's margin where they
first part: how far the largest logit was above the second, in deviations of the logits. A kernel that
is wrong parts sooner than the definitions do, or at larger margins.
"""

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import griffin_jax
from griffin_jax.config import GriffinConfig, preset
from griffin_jax.kernels import choice
from griffin_jax.language_model import LanguageModel
from griffin_jax.models import init_params, init_state, prepare_params
from griffin_jax.quantization import PACKINGS

FORMS = ("bfloat16", "nf4", "nf4-double", "int8")


@dataclasses.dataclass(frozen=True)
class Texts:
    """How texts of one batch compare with the reference.

    Attributes:
      first: The token at which each text first differs; their number where none does.
      margins: The reference's margin there, for each text that differs.
    """

    first: np.ndarray
    margins: np.ndarray

    def __str__(self) -> str:
        equal = len(self.first) - len(self.margins)
        there = f", margins there {np.median(self.margins):.4f}, at most {self.margins.max():.4f}"
        return (
            f"{equal} of {len(self.first)} equal, {np.mean(self.first):.1f} tokens to the first "
            f"difference{there if len(self.margins) else ''}"
        )


def shape(layers: int = 6) -> GriffinConfig:
    """Returns a small shape that kernels for a GPU serve."""
    return preset("tiny").replace(
        width=512,
        mlp_width=768,
        recurrence_width=512,
        num_heads=4,
        head_size=128,
        attention_window=128,
        num_layers=layers,
        vocab_size=2048,
    )


def weights(config: GriffinConfig, form: str, seed: int = 1) -> LanguageModel:
    """Returns a model with random weights in one of `FORMS`, ready for this machine."""
    dtype = jnp.bfloat16
    params = init_params(config, jax.random.key(seed), dtype)
    # With a tied embedding of this size a model of random weights says its last token again.
    params["embedder"] = jax.tree.map(lambda x: x * 0.02, params["embedder"])
    lm = LanguageModel(config, params, dtype=dtype)
    if form in PACKINGS:
        lm = griffin_jax.quantize(lm, PACKINGS[form])
    return dataclasses.replace(lm, params=prepare_params(config, lm.params, stack_layers=False))


@contextlib.contextmanager
def definitions() -> Iterator[None]:
    """Makes every operation that is traced inside of the block serve by its definition."""
    with mock.patch.object(choice, "platform", lambda: "none"):
        yield


def greedy(lm: LanguageModel, prompt: jax.Array, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens drawn [T, B], and how far each was above the next, in deviations."""

    def draw(logits):
        logits = logits.astype(jnp.float32)
        best, drawn = jax.lax.top_k(logits, 2)
        return drawn[:, 0], (best[:, 0] - best[:, 1]) / logits.std(-1)

    @jax.jit
    def write(params, prompt):
        state = init_state(lm.config, len(prompt), lm.dtype)
        logits, state = lm.model.apply({"params": params}, prompt, state)

        def step(carry, _):
            (token, margin), state = carry
            logits, state = lm.model.apply({"params": params}, token[:, None], state)
            return (draw(logits[:, 0]), state), (token, margin)

        return jax.lax.scan(step, (draw(logits[:, -1]), state), None, length=tokens)[1]

    drawn, margins = write(lm.params, prompt)
    return np.asarray(drawn), np.asarray(margins, np.float32)


def compare(lm: LanguageModel, rows: int, tokens: int, prompt: int = 40) -> tuple[Texts, Texts]:
    """Writes texts from random prompts by the kernels and by the definitions."""
    read = jax.random.randint(jax.random.key(rows), (rows, prompt), 0, lm.config.vocab_size)
    exact = dataclasses.replace(lm, params=widened(lm.params), dtype=jnp.dtype(jnp.float32))
    with definitions(), jax.default_matmul_precision("highest"):
        reference, margins = greedy(exact, read, tokens)
    kernels, _ = greedy(lm, read, tokens)
    with definitions():
        plain, _ = greedy(lm, read, tokens)

    def against(texts):
        differs = np.concatenate([texts != reference, np.ones((1, rows), bool)])
        first = differs.argmax(0)
        parted = np.flatnonzero(first < tokens)
        return Texts(first, margins[first[parted], parted])

    return against(kernels), against(plain)


def widened(params):
    """Returns parameters in float32 where they are in bfloat16; codes of packed weights stay."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, params)


def main() -> None:
    """Prints two lines for each form of weights and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS)
    parser.add_argument("--rows", nargs="+", type=int, default=(1, 4, 16, 64))
    parser.add_argument("--tokens", type=int, default=192)
    options = parser.parse_args()
    for form in options.forms:
        lm = weights(shape(), form)
        for rows in options.rows:
            found = compare(lm, rows, options.tokens)
            for name, texts in zip(("kernels", "definitions"), found, strict=True):
                print(f"{form}, {rows} rows, by {name}: {texts}", flush=True)


if __name__ == "__main__":
    main()
