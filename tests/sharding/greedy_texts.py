"""Greedy texts over several devices, beside those of one.

    JAX_PLATFORMS=cuda,cpu python -m tests.sharding.greedy_texts --model=2
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.sharding.greedy_texts --data=2 --model=4

Texts after prompts of many lengths, by a model with random weights of a shape that the kernels of a
decoding step serve, through the engine: in float32, where they are to be equal, and in bfloat16, where
rounding decides at small margins. A margin is how far the largest logit was above the second on one device where the texts
first part, in deviations of the logits.
"""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from griffin_jax.config import GriffinConfig
from griffin_jax.language_model import LanguageModel
from griffin_jax.models import prepare_params
from griffin_jax.sharding import check_config, make_mesh
from tests.kernels import greedy_texts

# Tokens of the shortest prompt, and of the longest.
PROMPTS = 20, 60
KINDS = ("float32", "bfloat16")


def shape(layers: int) -> GriffinConfig:
    """Returns a small shape of which eight devices have whole heads, tiles and 4-bit blocks each."""
    wide = greedy_texts.shape(layers)
    return wide.replace(num_heads=8, recurrence_width=1024, mlp_width=1024)


def placed(config: GriffinConfig, form: str, dtype: str, mesh: Mesh | None) -> LanguageModel:
    """Returns the model in this form of weights, computing in `dtype`, on one device or a mesh."""
    lm = greedy_texts.weights(config, form)
    params = lm.params if dtype == "bfloat16" else greedy_texts.widened(lm.params)
    if mesh is not None:
        params = prepare_params(lm.config, params, mesh=mesh, stack_layers=False)
    return dataclasses.replace(lm, params=params, dtype=jnp.dtype(dtype))


def texts(lm: LanguageModel, rows: int, tokens: int) -> tuple[list[list[int]], np.ndarray]:
    """Returns random prompts and the tokens after them [B, T], drawn by the engine together."""
    random = np.random.default_rng(0)
    lengths = np.linspace(*PROMPTS, rows).astype(int)
    prompts = [random.integers(3, lm.config.vocab_size, length).tolist() for length in lengths]
    samples = lm.sample(prompts, max_new_tokens=tokens)
    return prompts, np.array([sample.tokens for sample in samples])


def margin(lm: LanguageModel, tokens: np.ndarray) -> float:
    """Returns how far above the second the first choice after these tokens [T] is."""
    logits, _ = lm.apply(jnp.asarray(tokens)[None], last_only=True)
    logits = np.asarray(logits, np.float32).ravel()
    second, best = np.partition(logits, -2)[-2:]
    return float((best - second) / logits.std())


def compare(
    config: GriffinConfig, form: str, dtype: str, mesh: Mesh, rows: int, tokens: int
) -> dict:
    """Returns how many texts are equal, and where and at which margins others part."""
    one = placed(config, form, dtype, None)
    prompts, alone = texts(one, rows, tokens)
    _, parts = texts(placed(config, form, dtype, mesh), rows, tokens)
    differs = alone != parts
    first = [int(row.argmax()) for row in differs if row.any()]
    margins = [
        margin(one, np.array([*prompt, *text[: row.argmax()]]))
        for prompt, text, row in zip(prompts, alone, differs, strict=True)
        if row.any()
    ]
    return {
        "weights": form,
        "dtype": dtype,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "tokens": tokens,
        "equal": int((~differs.any(1)).sum()),
        "texts": rows,
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
    parser.add_argument("--data", type=int, default=1, help="devices that share the texts")
    parser.add_argument("--model", type=int, default=1, help="devices that cut the weights")
    parser.add_argument("--rows", type=int, default=5, help="texts")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    devices = jax.devices()[: options.data * options.model]
    try:
        mesh = make_mesh(data=options.data, model=options.model, devices=devices)
        check_config(config := shape(options.layers), mesh)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    for dtype in options.dtypes:
        precision = "highest" if dtype == "float32" else "default"
        for form in options.forms:
            with jax.default_matmul_precision(precision):
                found = compare(config, form, dtype, mesh, options.rows, options.tokens)
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
