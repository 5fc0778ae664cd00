"""The model that is evaluated: a checkpoint or a shape with random weights, and its fingerprint."""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp

from griffin_jax import checkpoints, loading
from griffin_jax.checkpoints.random_weights import random_params
from griffin_jax.config import check_dtype, preset
from griffin_jax.fields import check_value
from griffin_jax.language_model import LanguageModel
from griffin_jax.models import prepare_params
from griffin_jax.quantization import PACKINGS
from griffin_jax.tokenizer import load_tokenizer

RANDOM = "random:"

_PIECE = 2**24


def load(
    checkpoint: str,
    *,
    quantization: str | None = None,
    dtype: str | None = None,
    stack_layers: bool | None = None,
    mesh: jax.sharding.Mesh | None = None,
    adapter: str | None = None,
) -> LanguageModel:
    """Returns the model to be evaluated.

    Args:
      checkpoint: As for `griffin_jax.load`; or "random:" and the name of a preset, for a model of
        that shape with random weights and the tokenizer of griffin-tiny, to measure speed with.
      quantization: A key of `quantization.PACKINGS`, such as "nf4" or "int8", packs linear weights;
        a folder that is packed loads as it is without.
      dtype: The dtype of activations; see `griffin_jax.load`.
      stack_layers: See `griffin_jax.load`.
      mesh: See `griffin_jax.load`.
      adapter: See `griffin_jax.load`; not for random weights.

    Raises:
      ValueError: there is no tokenizer; or as `griffin_jax.load` and `griffin_jax.preset`.
      OSError: as `griffin_jax.load`.
    """
    settings = None
    if quantization is not None:
        check_value("quantization", quantization, str, one_of=tuple(PACKINGS))
        settings = PACKINGS[quantization]
    if str(checkpoint).startswith(RANDOM):
        config = preset(str(checkpoint).removeprefix(RANDOM))
        if adapter is not None:
            raise ValueError(f"an adapter goes with weights of its own model, not {checkpoint}")
        return _random(config, settings, dtype, stack_layers, mesh)
    check_tokenizer(checkpoint)
    return loading.load(
        checkpoint,
        quantization=settings,
        dtype=dtype,
        stack_layers=stack_layers,
        mesh=mesh,
        adapter=adapter,
    )


def check_tokenizer(checkpoint: str) -> None:
    """Checks, before any weight is read, that a checkpoint has a tokenizer with BOS and EOS.

    Raises:
      ValueError: it has none, or that is damaged or lacks one of them.
      OSError: there is no such checkpoint.
    """
    if str(checkpoint).startswith(RANDOM):
        preset(str(checkpoint).removeprefix(RANDOM))
        return
    folder = checkpoints.find_folder(checkpoint)
    try:
        load_tokenizer(folder)
    except FileNotFoundError:
        raise ValueError(
            f"checkpoint {checkpoint} has no tokenizer: put its tokenizer.model into {folder}"
        ) from None


def _random(config, settings, dtype, stack_layers, mesh):
    if dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    dtype = check_dtype(dtype)
    tokenizer = load_tokenizer(checkpoints.find_folder(checkpoints.BUNDLED))
    if config.vocab_size < tokenizer.vocab_size:
        config = config.replace(vocab_size=tokenizer.vocab_size)
    params = random_params(config, dtype=dtype, quantization=settings)
    params = prepare_params(config, params, mesh=mesh, stack_layers=stack_layers, consume=True)
    return LanguageModel(config, params, tokenizer, dtype, settings)


def fingerprint(checkpoint: str) -> str:
    """Returns SHA-256, in hex, over every file of a checkpoint's folder and its name.

    A model with random weights has its name instead.
    """
    if str(checkpoint).startswith(RANDOM):
        return str(checkpoint)
    folder = checkpoints.find_folder(checkpoint)
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        # The Hub's folders hold links to files, and caches of their own beside them.
        if path.is_file() and not _hidden(path.relative_to(folder)):
            digest.update(
                f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode()
            )
            with path.open("rb") as file:
                while piece := file.read(_PIECE):
                    digest.update(piece)
    return digest.hexdigest()


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
