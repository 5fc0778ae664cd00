"""LoRA adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from griffin_jax.checkpoints.files import read_json
from griffin_jax.checkpoints.huggingface import ARCHITECTURES, is_linear, tensor_name
from griffin_jax.checkpoints.shards import TensorInfo, read_header, read_tensor
from griffin_jax.errors import CheckpointError
from griffin_jax.foreign_settings import Rule, is_off, obeyed, only, read_settings, without_effect

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PICKLED_FILE = "adapter_model.bin"
_PREFIX = "base_model.model."
_HEAD = "lm_head/weight"
_WHOLE = re.compile(r"\b(lm_head|embed_tokens)\b")

_RULES: dict[str, Rule] = {
    "peft_type": only("LORA"),
    "r": obeyed,
    "lora_alpha": obeyed,
    "use_rslora": obeyed,
    "rank_pattern": obeyed,
    "alpha_pattern": obeyed,
    "target_modules": obeyed,
    "exclude_modules": obeyed,
    "layers_to_transform": obeyed,
    "layers_pattern": obeyed,
    "use_dora": is_off,
    "lora_bias": is_off,
    "modules_to_save": is_off,
    "trainable_token_indices": is_off,
    "layer_replication": is_off,
    "alora_invocation_tokens": is_off,
    "target_parameters": is_off,
    # Other tasks have a head of their own.
    "task_type": only("CAUSAL_LM", "FEATURE_EXTRACTION"),
    "bias": only("none"),
    # These begin at other a and b, which training replaces. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA
    # change the base's weights as well, again whenever PEFT loads the adapter.
    "init_lora_weights": only(True, False, "gaussian", "orthogonal", "eva", "mica"),
    "loftq_config": without_effect,
    "eva_config": without_effect,
    "corda_config": without_effect,
    "lora_ga_config": without_effect,
    "lora_dropout": without_effect,
    "inference_mode": without_effect,
    # PEFT turns it off for every layer that torch.nn.Linear makes, as all of these are.
    "fan_in_fan_out": without_effect,
    # Is about tokens and modules that are trained whole, which are refused.
    "ensure_weight_tying": without_effect,
    "qalora_group_size": without_effect,
    "megatron_core": without_effect,
    "runtime_config": without_effect,
    "auto_mapping": without_effect,
    "base_model_name_or_path": without_effect,
    "revision": without_effect,
    "peft_version": without_effect,
}
_DEFAULT_RANK = _DEFAULT_ALPHA = 8


def base_of(folder: Path) -> str:
    """Returns what an adapter's settings call its base model; empty where they do not say."""
    name = read_json(folder / CONFIG_FILE).get("base_model_name_or_path")
    return " ".join(name.split())[:200] if isinstance(name, str) else ""


def read_adapter(
    folder: Path, base: Mapping[str, Any]
) -> tuple[int, float, tuple[str, ...], dict[str, np.ndarray]]:
    """Reads a plain LoRA adapter.

    A rank, alpha or scale that differs from layer to layer (`rank_pattern`, `alpha_pattern`,
    `use_rslora`) is put into b, so that alpha / rank is the scale of all layers.

    Args:
      folder: Holds adapter_config.json and adapter_model.safetensors.
      base: The base's leaves by path, of which only the shapes are used.

    Returns:
      The rank of most layers and alpha; the layers that have an adapter, by name where all of that
      name have one ("q_proj") and otherwise by path ("blocks_2/attention_block/q_proj"); and the
      leaves LAYER/lora_a [rank, in] and LAYER/lora_b [out, rank], float32.

    Raises:
      CheckpointError: a file is missing or damaged, a setting changes what is computed and is not
        supported, or the adapter does not fit the base.
    """
    if not (folder / CONFIG_FILE).is_file():
        own = folder / "adapter"  # where `experiments.train` puts it in a run's folder
        hint = f"; {own} is one" if (own / CONFIG_FILE).is_file() else ""
        raise CheckpointError(f"{folder} is no LoRA adapter: it has no {CONFIG_FILE}{hint}")
    values = read_json(folder / CONFIG_FILE)
    try:
        settings = read_settings(values, _RULES, CONFIG_FILE)
        if values.get("peft_type") is None:
            raise ValueError(f"{CONFIG_FILE} has no peft_type")
        layer_scale = _scales(settings)
        is_target = _targets(settings)
    except ValueError as error:
        raise CheckpointError(f"{folder}: expected a plain LoRA adapter: {error}") from error
    if not (folder / WEIGHTS_FILE).is_file() and (folder / _PICKLED_FILE).is_file():
        raise CheckpointError(
            f"{folder}: {_PICKLED_FILE} is not read; PEFT's save_pretrained makes {WEIGHTS_FILE}"
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS_FILE}")
    tensors = read_header(folder / WEIGHTS_FILE)
    linear = {path: leaf for path, leaf in base.items() if is_linear(path) and path != _HEAD}
    modules = _modules(linear, tensors)

    adapted = {
        path: [name for part in "AB" if (name := _tensor(module, part)) in tensors]
        for path, module in modules.items()
    }
    if "target_modules" in settings:
        for path, module in modules.items():
            if adapted[path] and not is_target(module):
                raise CheckpointError(
                    f"{folder}: the adapter has tensor {adapted[path][0]}, which PEFT would leave "
                    f"out: target_modules and its like in {CONFIG_FILE} do not name {module}"
                )
    layers = [p for p, module in modules.items() if adapted[p] or is_target(module)]
    _check_names(
        folder, [_tensor(modules[path], part) for path in layers for part in "AB"], tensors
    )

    leaves, ratios = {}, {}
    for path in layers:
        outputs, inputs = linear[path].shape
        rank, ratio = layer_scale(modules[path])
        layer = path.removesuffix("/weight")
        ratios[f"{layer}/lora_b"] = ratio
        for part, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            name = _tensor(modules[path], part)
            leaves[f"{layer}/lora_{part.lower()}"] = _read(folder, name, tensors[name], shape)
    rank = settings.get("r", _DEFAULT_RANK)
    scale = 1.0 if len(set(ratios.values())) > 1 else next(iter(ratios.values()))
    for path, ratio in ratios.items():
        if ratio != scale:
            leaves[path] = leaves[path] * np.float32(ratio / scale)
    alpha = settings.get("lora_alpha", _DEFAULT_ALPHA) * scale
    return rank, alpha, _names_of(layers, linear), leaves


def write_adapter(
    folder: Path,
    rank: int,
    alpha: float,
    targets: tuple[str, ...],
    leaves: Mapping[str, np.ndarray],
    *,
    architecture: str,
    base: str,
) -> None:
    """Writes an adapter into a folder that exists, under the names of the model that it is for.

    Args:
      folder: Where to write.
      rank: The rank of most layers.
      alpha: The scale is alpha / rank.
      targets: As `read_adapter` returns them.
      leaves: As `read_adapter` returns them.
      architecture: `huggingface_config.model_type` of the base's config.
      base: Name or folder of the base model, for PEFT to find it.
    """
    tensors, own_rank = {}, {}
    for path, leaf in leaves.items():
        layer, _, part = path.rpartition("/lora_")
        module = tensor_name(layer, architecture)
        tensors[_tensor(module, part.upper())] = np.ascontiguousarray(leaf)
        if part == "a" and len(leaf) != rank:
            own_rank[module] = len(leaf)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": own_rank,
        "alpha_pattern": {module: alpha / rank * own for module, own in own_rank.items()},
        "target_modules": [tensor_name(target, architecture) for target in targets],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    data = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    (folder / WEIGHTS_FILE).write_bytes(data)
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")


def _scales(settings: dict[str, Any]) -> Callable[[str], tuple[int, float]]:
    """Gives the rank of a module and its scale, as a multiple of lora_alpha / r."""
    rank, alpha = settings.get("r", _DEFAULT_RANK), settings.get("lora_alpha", _DEFAULT_ALPHA)
    rank_pattern = settings.get("rank_pattern", {})
    alpha_pattern = settings.get("alpha_pattern", {})
    rooted = settings.get("use_rslora", False)
    if not isinstance(rooted, bool):
        raise ValueError(f"use_rslora must be true or false, got {rooted!r}")
    for name, pattern in (("rank_pattern", rank_pattern), ("alpha_pattern", alpha_pattern)):
        if not isinstance(pattern, dict):
            raise ValueError(f"{name} must be a JSON object, got {pattern!r:.80}")
        for key in pattern:
            _check_regular_expression(name, key)
    for name, value in (("r", rank), *(("rank_pattern", r) for r in rank_pattern.values())):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be whole numbers of at least 1, got {value!r}")
    for name, value in (
        ("lora_alpha", alpha),
        *(("alpha_pattern", a) for a in alpha_pattern.values()),
    ):
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or not value
        ):
            raise ValueError(f"{name} must be numbers other than 0, got {value!r}")

    def scale(module):
        own_rank = _by_pattern(rank_pattern, module, rank)
        own_alpha = _by_pattern(alpha_pattern, module, alpha)
        divisor = math.sqrt(own_rank) if rooted else own_rank
        return own_rank, own_alpha * rank / (divisor * alpha)

    return scale


def _by_pattern(pattern: dict[str, Any], module: str, default: Any) -> Any:
    keys = (key for key in pattern if re.match(rf"(.*\.)?({key})$", module))
    return pattern.get(next(keys, module), default)


def _targets(settings: dict[str, Any]) -> Callable[[str], bool]:
    """Tells whether the settings name a module, as PEFT decides it.

    A text is a regular expression for the whole name, or "all-linear", which is all but the head; a
    list has whole names or their ends.
    """
    targets = settings.get("target_modules")
    excluded = settings.get("exclude_modules", [])
    layers = settings.get("layers_to_transform", [])
    if isinstance(targets, str) and layers:
        raise ValueError("layers_to_transform goes with a list of target_modules, not with a text")
    layers = [layers] if isinstance(layers, int) else layers
    if not all(isinstance(layer, int) for layer in layers):
        raise ValueError(f"layers_to_transform must be whole numbers, got {layers!r:.80}")
    containers = settings.get("layers_pattern") or [r"[^.]*"]
    containers = [containers] if isinstance(containers, str) else containers
    for name, patterns in (
        ("target_modules", targets if targets is not None else []),
        ("exclude_modules", excluded),
        ("layers_pattern", containers),
    ):
        if isinstance(patterns, str):
            if patterns.lower() != "all-linear":
                _check_regular_expression(name, patterns)
        elif not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
            raise ValueError(f"{name} must be a list of names or one text, got {patterns!r:.80}")
        elif name == "layers_pattern":
            for pattern in patterns:
                _check_regular_expression(name, pattern)

    def is_target(module):
        if (excluded and _names(excluded, module)) or targets is None:
            return False
        if isinstance(targets, str) and targets.lower() == "all-linear":
            return True
        if not _names(targets, module):
            return False
        if not layers or module in targets:
            return True
        matches = (re.match(rf"(?:^|.*?\.){c}\.(?P<layer>\d+)\.", module) for c in containers)
        found = next(filter(None, matches), None)
        return found is not None and int(found["layer"]) in layers

    return is_target


def _names(names: str | list[str], module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _check_regular_expression(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{name}: {pattern!r:.80} is not a regular expression: {error}") from None


def _modules(linear: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, str]:
    """Returns the name of each layer, in the architecture whose names the tensors have."""

    def known(modules):
        return sum(_tensor(module, part) in tensors for module in modules.values() for part in "AB")

    candidates = [
        {path: tensor_name(path, architecture).removesuffix(".weight") for path in linear}
        for architecture in ARCHITECTURES
    ]
    return max(candidates, key=known)


def _tensor(module: str, part: str) -> str:
    return f"{_PREFIX}{module}.lora_{part}.weight"


def _check_names(folder: Path, expected: list[str], tensors: Mapping[str, TensorInfo]) -> None:
    lacking, odd = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if lacking:
        raise CheckpointError(
            f"{folder}: the adapter lacks tensor {lacking[0]} ({len(lacking)} in all)"
        )
    if whole := next((name for name in odd if _WHOLE.search(name)), None):
        raise CheckpointError(
            f"{folder}: the adapter changes the embedding or the head (tensor {whole}), which is not "
            "supported, only the linear layers of blocks"
        )
    if odd:
        raise CheckpointError(
            f"{folder}: the adapter has, and the base does not, tensor {odd[0]} ({len(odd)} in all)"
        )
    if not expected:
        raise CheckpointError(f"{folder}: the adapter has no tensors")


def _read(folder: Path, name: str, info: TensorInfo, shape: tuple[int, int]) -> np.ndarray:
    if info.shape != shape:
        raise CheckpointError(
            f"{folder}: tensor {name} has shape {info.shape}, the base needs {shape}"
        )
    if info.dtype.kind in "iub":
        raise CheckpointError(f"{folder}: tensor {name} holds {info.dtype}, not numbers of a layer")
    leaf = np.array(read_tensor(info), np.float32)
    if not np.isfinite(leaf).all():
        raise CheckpointError(f"{folder}: tensor {name} is not finite (NaN or infinity)")
    return leaf


def _names_of(paths: list[str], linear: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns layers by name where all of that name are among the paths, and by path otherwise."""
    layers = [path.removesuffix("/weight") for path in paths]
    others = {path.removesuffix("/weight") for path in linear} - set(layers)
    partly = {layer.rpartition("/")[2] for layer in others}
    names = ((layer, layer.rpartition("/")[2]) for layer in layers)
    return tuple(dict.fromkeys(layer if name in partly else name for layer, name in names))
