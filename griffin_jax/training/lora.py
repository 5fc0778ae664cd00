"""Low-rank adapters (LoRA, arXiv:2106.09685; over 4-bit weights QLoRA, arXiv:2305.14314)."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.typing import DTypeLike

from griffin_jax.checkpoints import CheckpointError
from griffin_jax.checkpoints.files import read_json, staged_folder
from griffin_jax.checkpoints.huggingface import tensor_name
from griffin_jax.fields import check_fields, field
from griffin_jax.models.lora_weight import LoRAWeight
from griffin_jax.quantization import dequantize
from griffin_jax.quantization.tensor import QuantizedTensor
from griffin_jax.sharding import is_first, to_host

Params = Any

_CONFIG_FILE, _WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_RECURRENT = ("linear_x", "linear_y", "linear_out")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """What an adapter adds to.

    Attributes:
      rank: Rows of a, columns of b.
      alpha: b a is multiplied by alpha / rank.
      targets: Names of the linear layers that get one, by default all.
    """

    rank: int = field(16, at_least=1, at_most=2**16)
    alpha: float = field(32.0, above=0, at_most=1e6)
    targets: tuple[str, ...] = _RECURRENT + _ATTENTION + _MLP

    def __post_init__(self):
        check_fields(self, "lora.")
        known = _RECURRENT + _ATTENTION + _MLP
        if not self.targets or set(self.targets) - set(known):
            raise ValueError(f"lora.targets are some of {known}, got {self.targets}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def init_adapter(config: LoRAConfig, base: Params, key: jax.Array) -> Params:
    """A fresh adapter, which adds nothing: a is drawn uniformly as PEFT does, b is zero.

    Returns:
      A nested dict like `base`, with float32 leaves blocks_<i>/.../<target>/lora_a [rank, in] and
      lora_b [out, rank].
    """
    adapter = {}
    for path, weight in _flat(base).items():
        if path[-1] == "weight" and path[-2] in config.targets:
            key, draw = jax.random.split(key)
            features, inputs = weight.shape
            bound = inputs**-0.5
            shape = (config.rank, inputs)
            adapter[*path[:-1], "lora_a"] = jax.random.uniform(
                draw, shape, minval=-bound, maxval=bound
            )
            adapter[*path[:-1], "lora_b"] = jnp.zeros((features, config.rank))
    return flax.traverse_util.unflatten_dict(adapter)


def adapt(config: LoRAConfig, adapter: Params, base: Params) -> Params:
    """The base's tree with `LoRAWeight` leaves where the adapter has something to add."""
    low_rank, tree = _flat(adapter), _flat(base)
    for *path, name in low_rank:
        if name == "lora_a":
            tree[*path, "weight"] = LoRAWeight(
                base=tree[*path, "weight"],
                a=low_rank[*path, "lora_a"],
                b=low_rank[*path, "lora_b"],
                scale=config.scale,
            )
    return flax.traverse_util.unflatten_dict(tree)


def merge(
    config: LoRAConfig, adapter: Params, base: Params, dtype: DTypeLike | None = None
) -> Params:
    """The base's tree with the adapter added to its weights, which unpacks 4-bit ones.

    Sums are float32, rounded to `dtype`, by default that of each weight (before it was packed).
    """

    def merged(leaf):
        if not isinstance(leaf, LoRAWeight):
            return leaf
        weight = leaf.base
        out_dtype = weight.dtype if dtype is None else dtype
        if isinstance(weight, QuantizedTensor):
            weight = dequantize(weight, jnp.float32)
        added = jnp.matmul(leaf.b, leaf.a, precision="highest")
        return (weight.astype(jnp.float32) + leaf.scale * added).astype(out_dtype)

    tree = adapt(config, adapter, base)
    return jax.tree.map(merged, tree, is_leaf=lambda leaf: isinstance(leaf, LoRAWeight))


def save_adapter(folder: str | Path, config: LoRAConfig, adapter: Params, base: str = "") -> None:
    """Saves an adapter alone into a new folder, as PEFT reads it for transformers' RecurrentGemma.

    Args:
      folder: What to make; must not exist, or be empty.
      config: Of the adapter.
      adapter: As `init_adapter` makes it.
      base: Name or folder of the base model, for PEFT to find it.

    Raises:
      CheckpointError: the folder holds something.
    """
    tensors = {
        _tensor_name(path): np.ascontiguousarray(leaf)
        for path, leaf in _flat(to_host(adapter)).items()
    }
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "target_modules": list(config.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with staged_folder(folder) as partial:
        if not is_first():
            return
        data = safetensors.numpy.save(tensors, metadata={"format": "pt"})
        (partial / _WEIGHTS_FILE).write_bytes(data)
        (partial / _CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")


def load_adapter(folder: str | Path, base: Params) -> tuple[LoRAConfig, Params]:
    """Reads an adapter that `save_adapter` or PEFT wrote.

    Args:
      folder: Holds adapter_config.json and adapter_model.safetensors.
      base: Parameters that it adds to; only their shapes are used.

    Raises:
      CheckpointError: a file is missing or damaged, the adapter is not a plain LoRA, or it does
        not fit the base.
    """
    folder = Path(folder)
    settings = read_json(folder / _CONFIG_FILE)
    unusual = [
        name
        for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern")
        if settings.get(name)
    ]
    if settings.get("peft_type") != "LORA" or unusual:
        raise CheckpointError(
            f"{folder}: expected a plain LoRA adapter, got {settings.get('peft_type')} {unusual}"
        )
    try:
        config = LoRAConfig(settings["r"], settings["lora_alpha"], settings["target_modules"])
        tensors = safetensors.numpy.load_file(folder / _WEIGHTS_FILE)
    except (KeyError, ValueError, OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder}: damaged or unfitting adapter: {error}") from error
    expected = _flat(jax.eval_shape(lambda: init_adapter(config, base, jax.random.key(0))))
    names = {_tensor_name(path): path for path in expected}
    odd = sorted(names.keys() ^ tensors.keys())
    if odd:
        side = "lacks" if odd[0] in names else "has, and the base does not,"
        raise CheckpointError(f"{folder}: the adapter {side} tensor {odd[0]} ({len(odd)} in all)")
    adapter = {}
    for name, path in names.items():
        if tensors[name].shape != expected[path].shape:
            raise CheckpointError(
                f"{folder}: tensor {name} has shape {tensors[name].shape}, the base needs "
                f"{expected[path].shape}"
            )
        adapter[path] = jnp.asarray(tensors[name], jnp.float32)
    return config, flax.traverse_util.unflatten_dict(adapter)


def _flat(tree: Params) -> dict[tuple[str, ...], Any]:
    return flax.traverse_util.flatten_dict(tree)


def _tensor_name(path: tuple[str, ...]) -> str:
    """blocks_0/mlp_block/up_proj/lora_a is base_model.model.model.layers.0.mlp_block.up_proj.lora_A.weight."""
    name = tensor_name("/".join(path))
    return f"{_PREFIX}{name[:-1]}{name[-1].upper()}.weight"
