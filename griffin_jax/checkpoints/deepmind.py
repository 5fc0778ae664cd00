"""The published Flax trees of RecurrentGemma (Kaggle's "flax" archives), stored by Orbax.

The tree is that of `recurrentgemma` on PyPI, bare or under "params": `blocks.0` / `recurrent_block`
/ `linear_x` / `kernel`, nested, or flat with keys joined by dots or slashes. Its kernels are
[in, out], and the MLP's gate and up projections are one array [2, D, F].
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from griffin_jax.checkpoints.files import listed
from griffin_jax.checkpoints.orbax import OrbaxTree, is_orbax_tree
from griffin_jax.checkpoints.placement import Shardings
from griffin_jax.checkpoints.tree import block_of, check_shape, flat_abstract_params
from griffin_jax.config import ATTENTION, PRESETS, RECURRENT, GriffinConfig
from griffin_jax.errors import CheckpointError

_EMBEDDING = "embedder.input_embedding"
_RENAMES = (
    (r"/", r"."),
    (r"^embedder\.embedding$", _EMBEDDING),
    (r"^blocks_", r"blocks."),
    (r"\.([qkv])_proj\.", r".proj_\1."),
    (r"\.o_proj\.", r".proj_final."),
    (r"\.down_proj\.", r".ffw_down."),
    (r"\.(gate|up)_proj\.weight$", r".ffw_up.w"),
    (r"\.(gate|up)_proj\.bias$", r".ffw_up.b"),
    (r"(conv_1d|_gate)\.weight$", r"\1.w"),
    (r"(conv_1d|_gate)\.bias$", r"\1.b"),
    (r"\.weight$", r".kernel"),
)


def array_name(path: str) -> str:
    """Returns the array of a leaf, dotted: blocks_0/mlp_block/up_proj/bias is in
    blocks.0.mlp_block.ffw_up.b.
    """
    for pattern, replacement in _RENAMES:
        path = re.sub(pattern, replacement, path)
    return path


def open_folder(folder: Path) -> "DeepMindSource | None":
    """Opens a folder that is a published tree or has one in it, as Kaggle's archives do.

    Returns None for a folder of another format, and where two folders could be the tree.
    """
    trees = [path for path in (folder, *sorted(folder.iterdir())) if is_orbax_tree(path)]
    if trees and (trees[0] == folder or len(trees) == 1):
        return DeepMindSource(trees[0], folder)
    return None


class DeepMindSource:
    """A published tree, opened: names are checked, no weight is read.

    Attributes:
      config: The model's shape, see `infer_config`.
      quantization: None.
      nbytes: The bytes of all weights as stored.
      folder: The checkpoint's folder, in which a tokenizer lies.

    Raises:
      CheckpointError: the tree is no Griffin model, or incomplete.
    """

    quantization: dict[str, Any] | None = None

    def __init__(self, tree: Path, folder: Path | None = None):
        self.folder = tree if folder is None else folder
        self._tree = OrbaxTree(tree)
        self._keys = {
            ".".join(key).replace("/", ".").removeprefix("params."): key
            for key in self._tree.arrays
        }
        stored = {name: tuple(self._tree.arrays[key].shape) for name, key in self._keys.items()}
        self.config = infer_config(stored, tree)
        self._shapes = flat_abstract_params(self.config)
        wanted = {array_name(path) for path in self._shapes}
        for problem, names in (
            ("missing", wanted - set(stored)),
            ("unexpected", set(stored) - wanted),
        ):
            if names:
                raise CheckpointError(f"{tree}: {listed(sorted(names))} {problem}")

    @property
    def nbytes(self) -> int:
        return self._tree.nbytes

    def stored_name(self, path: str) -> str:
        """Returns how the checkpoint calls a leaf."""
        return array_name(path)

    def leaves(
        self, shardings: Shardings | None = None
    ) -> Iterator[tuple[str, np.ndarray | jax.Array]]:
        """Yields every leaf's path and value, in the model's order; the host holds a block at a
        time.

        With shardings the values are arrays that lie so, of which each process reads its part.

        Raises:
          CheckpointError: an array has another shape than the rest of the tree implies.
        """
        for _, block in itertools.groupby(self._shapes, block_of):
            paths = list(block)
            where = shardings and {
                self._keys[array_name(path)]: _stored(path, shardings(path, self._shapes[path]))
                for path in paths
            }
            arrays = self._tree.read({self._keys[array_name(path)] for path in paths}, where)
            for path in paths:
                array = arrays[self._keys[array_name(path)]]
                leaf = _leaf(path, array)
                check_shape(
                    f"{self._tree.folder}: {array_name(path)}, read as {path},",
                    leaf.shape,
                    self._shapes[path].shape,
                )
                yield path, leaf


def infer_config(shapes: dict[str, tuple[int, ...]], folder: Path) -> GriffinConfig:
    """Returns the config that a tree's shapes tell.

    Shapes do not tell the attention window, the soft cap and whether embeddings are scaled. They
    are those of the preset with the same shapes, of RecurrentGemma if there is none: 2,048, 30 and
    yes.

    Args:
      shapes: The shapes of every array, by its dotted name.
      folder: For messages.

    Raises:
      CheckpointError: the tree is no Griffin model.
    """
    layers = 1 + max(
        (int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", name) for name in shapes) if m),
        default=-1,
    )
    kinds = tuple(
        ATTENTION if f"blocks.{i}.attention_block.proj_k.kernel" in shapes else RECURRENT
        for i in range(layers)
    )
    try:
        vocab_size, width = shapes[_EMBEDDING]
        mlp_width = shapes["blocks.0.mlp_block.ffw_up.w"][-1]
        recurrence_width, conv_width = width, GriffinConfig.conv_width
        if RECURRENT in kinds:
            block = f"blocks.{kinds.index(RECURRENT)}.recurrent_block"
            (recurrence_width,) = shapes[f"{block}.rg_lru.a_param"]
            num_heads = shapes[f"{block}.rg_lru.a_gate.w"][0]
            conv_width = shapes[f"{block}.conv_1d.w"][0]
        else:
            num_heads = width // shapes["blocks.0.attention_block.proj_k.kernel"][1]
        config = GriffinConfig(
            vocab_size=vocab_size,
            width=width,
            mlp_width=mlp_width,
            num_layers=layers,
            num_heads=num_heads,
            block_pattern=_shortest_cycle(kinds),
            recurrence_width=recurrence_width,
            conv_width=conv_width,
        )
    except KeyError as error:
        raise CheckpointError(
            f"{folder} is an Orbax checkpoint, but not of a Griffin model: it has no {error.args[0]}"
        ) from error
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{folder} is not a Griffin model's tree: {error}") from error
    for preset in PRESETS.values():
        if _same_shapes(preset, config):
            return preset.replace(vocab_size=vocab_size)
    return config


def _same_shapes(preset: GriffinConfig, config: GriffinConfig) -> bool:
    as_told = config.replace(
        block_pattern=preset.block_pattern,
        attention_window=preset.attention_window,
        scale_embeddings=preset.scale_embeddings,
        logits_soft_cap=preset.logits_soft_cap,
    )
    return (
        preset.replace(vocab_size=config.vocab_size) == as_told
        and preset.block_types == config.block_types
    )


def _shortest_cycle(kinds: tuple[str, ...]) -> tuple[str, ...]:
    for length in range(1, len(kinds)):
        if all(kind == kinds[i % length] for i, kind in enumerate(kinds)):
            return kinds[:length]
    return kinds


def _stored(path: str, sharding: jax.sharding.NamedSharding) -> jax.sharding.NamedSharding:
    """Returns where a leaf's array lies as it is stored, if the leaf shall lie under `sharding`."""
    name = array_name(path)
    axes = tuple(sharding.spec)
    if name.endswith("ffw_up.w"):
        axes = (None, *reversed(_padded(axes)))
    elif name.endswith("ffw_up.b"):
        axes = (None, None, None, *axes)
    elif name.endswith(".kernel"):
        axes = tuple(reversed(_padded(axes)))
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*axes))


def _padded(axes: tuple) -> tuple:
    """Returns the axes of both dimensions of a matrix; a PartitionSpec leaves out the tail of dimensions that are whole."""
    return axes + (None,) * (2 - len(axes))


def _leaf(path: str, array: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    name = array_name(path)
    if name.endswith("ffw_up.w"):
        return array[int("up_proj" in path)].T
    if name.endswith("ffw_up.b"):
        return array[int("up_proj" in path), 0, 0]
    return array.T if name.endswith(".kernel") else array
