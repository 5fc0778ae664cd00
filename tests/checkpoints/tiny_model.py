"""Random weights of a tiny model, made without running its initializers."""

import json
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from griffin_jax.checkpoints.tree import flat_abstract_params
from griffin_jax.config import TINY, GriffinConfig
from griffin_jax.models import Griffin

# Three layers hold every kind of leaf.
CONFIG = TINY.replace(num_layers=3)


def random_params(config: GriffinConfig, dtype=jnp.float32, seed: int = 0) -> dict:
    """Normal numbers in every leaf, biases and norms too."""
    rng = np.random.default_rng(seed)
    return flax.traverse_util.unflatten_dict(
        {
            path: jnp.asarray(rng.normal(size=leaf.shape, scale=0.1), dtype)
            for path, leaf in flat_abstract_params(config).items()
        },
        sep="/",
    )


def assert_same_tree(actual, expected):
    """Same structure, dtypes and values, bit for bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert a.dtype == b.dtype, name
        assert a.shape == b.shape, name
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), name


def logits(config: GriffinConfig, params: dict, tokens: np.ndarray, lengths=None) -> np.ndarray:
    """Logits of a fresh model in float32; tokens [B, T], padded at the right to `lengths`."""
    forward = jax.jit(
        lambda params, tokens, lengths: Griffin(config).apply(
            {"params": params}, tokens, lengths=lengths
        )
    )
    return np.asarray(forward(params, jnp.asarray(tokens), lengths)[0])


def edit_json(path: Path, **changes) -> None:
    """Changes some keys of a JSON object in place."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def one_line_error(path, error=CheckpointError, **kwargs) -> str:
    """The message of loading `path`, which must be one line."""
    try:
        load_checkpoint(path, **kwargs)
    except error as raised:
        assert "\n" not in str(raised)
        return str(raised)
    raise AssertionError(f"{path} was loaded")


def save_tiny(folder: Path, config: GriffinConfig = CONFIG, format="huggingface", **kwargs) -> dict:
    """Saves random weights and returns them."""
    params = random_params(config)
    save_checkpoint(folder, config, params, format=format, **kwargs)
    return params
