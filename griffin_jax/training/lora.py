"""Low-rank adapters (LoRA, arXiv:2106.09685; over 4-bit weights QLoRA, arXiv:2305.14314)."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from griffin_jax import models, paths
from griffin_jax.checkpoints import BUNDLED, CheckpointError, open_checkpoint, peft
from griffin_jax.checkpoints.files import staged_folder
from griffin_jax.checkpoints.huggingface_config import RECURRENT_GEMMA, model_type
from griffin_jax.config import GriffinConfig
from griffin_jax.fields import check_fields, field
from griffin_jax.models import adapted_layers
from griffin_jax.models.lora_weight import LoRAWeight
from griffin_jax.sharding import is_first, to_host

Params = Any


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """The size of an adapter and the layers that it adds to.

    Attributes:
      rank: Rows of a, columns of b.
      alpha: b a is multiplied by alpha / rank.
      targets: The linear layers that get one, by default all: names ("q_proj"), or paths for some
        of a name only ("blocks_2/attention_block/q_proj").
    """

    rank: int = field(16, at_least=1, at_most=2**16)
    alpha: float = field(32.0, above=0, at_most=1e6)
    targets: tuple[str, ...] | None = None

    def __post_init__(self):
        check_fields(self, "lora.")
        known = adapted_layers()
        if self.targets is None:
            object.__setattr__(self, "targets", known)
        if not self.targets or {target.rpartition("/")[2] for target in self.targets} - set(known):
            raise ValueError(f"lora.targets are some of {known}, got {self.targets}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def init_adapter(config: LoRAConfig, base: Params, key: jax.Array) -> Params:
    """Returns a fresh adapter, which adds nothing: a is drawn uniformly as PEFT does, b is zero.

    Returns:
      A nested dict like `base`, with float32 leaves blocks_<i>/.../<target>/lora_a [rank, in] and
      lora_b [out, rank].
    """
    adapter = {}
    for path, weight in _flat(base).items():
        if path[-1] == "weight" and {path[-2], "/".join(path[:-1])} & set(config.targets):
            key, draw = jax.random.split(key)
            features, inputs = weight.shape
            bound = inputs**-0.5
            shape = (config.rank, inputs)
            adapter[*path[:-1], "lora_a"] = jax.random.uniform(
                draw, shape, jnp.float32, minval=-bound, maxval=bound
            )
            adapter[*path[:-1], "lora_b"] = jnp.zeros((features, config.rank), jnp.float32)
    return flax.traverse_util.unflatten_dict(adapter)


def adapt(config: LoRAConfig, adapter: Params, base: Params) -> Params:
    """Returns the base's tree with `LoRAWeight` leaves where the adapter has something to add."""
    return models.adapt(adapter, base, config.scale)


def merge(
    config: LoRAConfig, adapter: Params, base: Params, dtype: DTypeLike | None = None
) -> Params:
    """Returns the base's tree with the adapter added to its weights, which unpacks 4-bit ones.

    Sums are float32, rounded to `dtype`, by default that of each weight (before it was packed).
    """

    def merged(leaf):
        return leaf.dequantize(dtype) if isinstance(leaf, LoRAWeight) else leaf

    tree = adapt(config, adapter, base)
    return jax.tree.map(merged, tree, is_leaf=lambda leaf: isinstance(leaf, LoRAWeight))


def save_adapter(
    folder: str | Path,
    config: LoRAConfig,
    adapter: Params,
    base: str = "",
    model: GriffinConfig | None = None,
    replace: bool = False,
) -> None:
    """Saves an adapter alone into a new folder, as PEFT reads it for transformers' model.

    Args:
      folder: What to make; must not exist, or be empty.
      config: The settings of the adapter.
      adapter: As `init_adapter` makes it.
      base: Name or folder of the base model, for PEFT to find it.
      model: The base's config: RecurrentGemma and Gemma call their layers by other names. None
        takes it from recurrent layers of the adapter or from the folder `base`.
      replace: Take the place of a folder that is there, once the new one is complete.

    Raises:
      CheckpointError: the folder holds something, or nothing tells what the base is.
    """
    if base and base != BUNDLED and (there := paths.resolve(base)).is_dir():
        base = str(there)  # PEFT expands nothing, and may look from another folder
    leaves = _flat(to_host(adapter), sep="/")
    architecture = _architecture(leaves, base, model)
    with staged_folder(folder, replace) as partial:
        if is_first():
            peft.write_adapter(
                partial,
                config.rank,
                config.alpha,
                config.targets,
                leaves,
                architecture=architecture,
                base=base,
            )


def load_adapter(folder: str | Path, base: Params) -> tuple[LoRAConfig, Params]:
    """Reads an adapter that `save_adapter` or PEFT wrote.

    Args:
      folder: Holds adapter_config.json and adapter_model.safetensors.
      base: Parameters that it adds to; only their shapes are used.

    Raises:
      CheckpointError: a file is missing or damaged, the adapter is not a plain LoRA, or it does
        not fit the base; see `griffin_jax.checkpoints.peft`.

    Returns:
      A config and an adapter that mean the same: a rank or scale of its own that a layer has, and
      rank-stabilized scales (arXiv:2312.03732), are in the adapter's leaves.
    """
    rank, alpha, targets, leaves = peft.read_adapter(paths.resolve(folder), _flat(base, sep="/"))
    adapter = {path: jnp.asarray(leaf) for path, leaf in leaves.items()}
    try:
        config = LoRAConfig(rank, alpha, targets)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return config, flax.traverse_util.unflatten_dict(adapter, sep="/")


def _architecture(leaves: dict[str, Any], base: str, model: GriffinConfig | None) -> str:
    """Returns whose names the layers of an adapter have in transformers."""
    if model is not None:
        return model_type(model)
    if any("/recurrent_block/" in path for path in leaves):
        return RECURRENT_GEMMA
    if base and (base == BUNDLED or paths.resolve(base).is_dir()):
        return model_type(open_checkpoint(base).config)
    raise CheckpointError(
        f"the adapter's layers have other names in each architecture, and there is no folder "
        f"{base!r} that tells which: give model=, the base's config"
    )


def _flat(tree: Params, sep: str | None = None) -> dict[Any, Any]:
    return flax.traverse_util.flatten_dict(tree, sep=sep)
