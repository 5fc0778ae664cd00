"""Greedy texts over several devices, beside those of one.

    JAX_PLATFORMS=cuda,cpu python -m tests.sharding.greedy_texts --model=2

Five texts each, by a model with random weights of a shape that the kernels of a decoding step serve,
through the engine: in float32, where they are to be equal, and in bfloat16, where rounding decides at
small margins. A margin is how far the largest logit was above the second on one device where the texts
first part, in deviations of the logits.
"""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.language_model import LanguageModel
from griffin_jax.models import prepare_params
from griffin_jax.sharding import make_mesh
from tests.kernels import greedy_texts

ROWS, PROMPT = 5, 40
KINDS = ("float32", "bfloat16")


def placed(form: str, dtype: str, mesh: jax.sharding.Mesh | None) -> LanguageModel:
    """Returns the model in this form of weights, computing in `dtype`, on one device or a mesh."""
    lm = greedy_texts.weights(greedy_texts.shape(), form)
    params = lm.params if dtype == "bfloat16" else greedy_texts.widened(lm.params)
    if mesh is not None:
        params = prepare_params(lm.config, params, mesh=mesh, stack_layers=False)
    return dataclasses.replace(lm, params=params, dtype=jnp.dtype(dtype))


def texts(lm: LanguageModel, tokens: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns random prompts [B, P] and the tokens after them [B, T], drawn by the engine together."""
    prompts = np.random.default_rng(seed).integers(3, lm.config.vocab_size, (ROWS, PROMPT))
    samples = lm.sample(prompts.tolist(), max_new_tokens=tokens)
    return prompts, np.array([sample.tokens for sample in samples])


def margin(lm: LanguageModel, tokens: np.ndarray) -> float:
    """Returns how far above the second the first choice after these tokens [T] is."""
    logits, _ = lm.apply(jnp.asarray(tokens)[None], last_only=True)
    logits = np.asarray(logits, np.float32).ravel()
    second, best = np.partition(logits, -2)[-2:]
    return float((best - second) / logits.std())


def compare(form: str, dtype: str, mesh: jax.sharding.Mesh, tokens: int) -> dict:
    """Returns how many texts are equal, and where and at which margins others part."""
    one = placed(form, dtype, None)
    prompts, alone = texts(one, tokens)
    _, parts = texts(placed(form, dtype, mesh), tokens)
    differs = alone != parts
    first = [int(row.argmax()) for row in differs if row.any()]
    margins = [
        margin(one, np.concatenate([prompt, text[: row.argmax()]]))
        for prompt, text, row in zip(prompts, alone, differs, strict=True)
        if row.any()
    ]
    return {
        "weights": form,
        "dtype": dtype,
        "devices": mesh.size,
        "tokens": tokens,
        "equal": int((~differs.any(1)).sum()),
        "texts": ROWS,
        "first_differences": first,
        "margins": margins,
    }


def main() -> None:
    """Prints a line of JSON for each form of weights and dtype."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--forms", nargs="+", default=("bfloat16", "nf4"), choices=greedy_texts.FORMS
    )
    parser.add_argument("--dtypes", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--model", type=int, default=2, help="devices that cut the weights")
    parser.add_argument("--tokens", type=int, default=96)
    options = parser.parse_args()
    mesh = make_mesh(model=options.model, devices=jax.devices()[: options.model])
    for dtype in options.dtypes:
        precision = "highest" if dtype == "float32" else "default"
        for form in options.forms:
            with jax.default_matmul_precision(precision):
                print(json.dumps(compare(form, dtype, mesh, options.tokens)), flush=True)


if __name__ == "__main__":
    main()
