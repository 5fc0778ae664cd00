"""Telling one model's weights from another's, by a few of their numbers."""

import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from griffin_jax.config import GriffinConfig
from griffin_jax.devices import replicate
from griffin_jax.models.stack import GROUPS
from griffin_jax.sharding import jit_on_mesh
from griffin_jax.sharding.trees import tree_path

_PLACES = 8  # along each dimension


def fingerprint(config: GriffinConfig, params: dict[str, Any]) -> str:
    """Returns SHA-256, in hex, of a model's shape and of numbers from all over each of its
    parameters.

    A model has the same one however its layers are stacked, wherever its arrays lie, and whether a
    number that bfloat16 holds is kept as bfloat16 or float32. Another training step changes it, as
    it changes nearly all numbers; one that changes a single number may not.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = tree_path(path)
        if not name.startswith(f"{GROUPS}/"):
            found[name] = _sample(leaf, 0)
            continue
        # groups/blocks_<place>/...: of a stack, each layer by its own name.
        _, place, rest = name.split("/", 2)
        first, step = int(place.rpartition("_")[2]), len(config.block_pattern)
        for group, numbers in enumerate(_sample(leaf, 1)):
            found[f"blocks_{first + group * step}/{rest}"] = numbers
    digest = hashlib.sha256(repr(config).encode())
    for name, numbers in sorted(found.items()):
        digest.update(f"{name}{list(numbers.shape)}".encode())
        digest.update(np.ascontiguousarray(numbers).tobytes())
    return digest.hexdigest()


def _sample(leaf, whole):
    """Returns numbers from all over an array; of its first `whole` dimensions, all places."""
    index = tuple(
        np.arange(size)
        if axis < whole
        else np.unique(np.linspace(0, size - 1, _PLACES).astype(int))
        for axis, size in enumerate(leaf.shape)
    )
    numbers = np.asarray(_take(leaf, index) if index else leaf)
    return numbers if numbers.dtype.kind in "iub" else numbers.astype(np.float32)


@functools.partial(jit_on_mesh)
def _take(leaf, index):
    return replicate(leaf[jnp.ix_(*index)])
