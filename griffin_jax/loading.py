"""Loading a model, packing and unpacking it, and saving it."""

import dataclasses
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from griffin_jax import checkpoints, inputs, paths
from griffin_jax.checkpoints import peft
from griffin_jax.checkpoints.huggingface_config import model_type
from griffin_jax.config import check_dtype
from griffin_jax.errors import CheckpointError
from griffin_jax.fields import check_value
from griffin_jax.inference.generation_settings import check_generation_file
from griffin_jax.kernels.dense_matmul import has_bfloat16
from griffin_jax.language_model import LanguageModel
from griffin_jax.models import (
    abstract_params,
    adapt,
    is_stacked,
    param_shardings,
    prepare_params,
    unstack_params,
)
from griffin_jax.models.lora_weight import LoRAWeight
from griffin_jax.quantization import QuantizationConfig
from griffin_jax.sharding import check_config, to_host
from griffin_jax.tokenizer import find_tokenizer
from griffin_jax.tokenizer_files import GENERATION_FILE
from griffin_jax.weight import is_weight

_QUANTIZATION = "a QuantizationConfig, such as griffin_jax.QuantizationConfig()"


def load(
    path: str | Path,
    *,
    quantization: QuantizationConfig | None = None,
    dtype: DTypeLike | None = None,
    stack_layers: bool | None = None,
    allow_nan: bool = False,
    mesh: jax.sharding.Mesh | None = None,
    adapter: str | Path | None = None,
) -> LanguageModel:
    """Loads a model and the tokenizer beside it.

    Args:
      path: "griffin-tiny", the model that comes with the package; or a folder in Hugging Face's
        format, with a published DeepMind tree, or written by `save`; or a name on the Hub.
      quantization: Pack linear weights, leaf by leaf on the way: as `quantize`, without ever holding the
        whole model. A folder that is packed loads as it is without this.
      dtype: The dtype of activations, and of parameters outside of packed weights. Defaults to what
        `QuantizationConfig.compute_dtype` says of packed ones; otherwise to bfloat16 on accelerators
        and to float32 on CPUs. By default, parameters stored in bfloat16 also stay in it on a CPU
        that multiplies bfloat16: that halves their memory and the time of decoding, and products
        with float32 activations are those of float32 parameters. bfloat16 is four times as fast
        there at reading prompts.
      stack_layers: Run the layers in a loop over groups, see `stack_params`, which compiles faster;
        the result is the same. By default where it also runs as fast, as measured.
      allow_nan: Go on where a weight holds NaN or infinity.
      mesh: What `griffin_jax.sharding.make_mesh` returns: the parameters go straight to where its table says,
        however they were saved, and each process reads its part; whatever runs the model runs it
        on the mesh. None: all of it on one device.
      adapter: A folder with a LoRA adapter, as PEFT or `train` writes it. It stays beside the weights,
        which may be packed; `dequantize` merges it into them.

    Raises:
      FileNotFoundError: there is no such folder.
      CheckpointError: (a ValueError) the folder has no weights, or damaged or unfitting ones, or is
        packed already, otherwise than `quantization` says; or the adapter does not fit.
      MeshError: (a ValueError) the mesh does not divide the model; the message says which would.
      ValueError: layers to be stacked are not of one kind, the tokenizer is damaged or does not fit
        the model, `dtype` is none that a model runs in, or a weight to be packed holds NaN or
        infinity.
    """
    if quantization is not None:
        inputs.check_type("quantization", quantization, QuantizationConfig, _QUANTIZATION)
    if mesh is not None:
        inputs.check_type("mesh", mesh, jax.sharding.Mesh, "of griffin_jax.sharding.make_mesh")
    if dtype is not None:
        check_dtype(dtype)
    source = checkpoints.open_checkpoint(path)
    if mesh is not None:
        check_config(source.config, mesh)
        # Which raises before anything is read.
        param_shardings(source.config, abstract_params(source.config), mesh)
    tokenizer = find_tokenizer(source.folder, source.config)
    check_generation_file(source.folder / GENERATION_FILE)
    settings = quantization
    if settings is None and source.quantization:
        settings = QuantizationConfig.from_dict(source.quantization)
    # Where products of float32 with bfloat16 lose neither time nor digits.
    native = jax.default_backend() == "cpu" and has_bfloat16()
    preserve_dtype = jnp.bfloat16 if dtype is None and native else None
    if settings is not None:
        dtype = settings.compute_dtype(dtype)
    if dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    dtype = check_dtype(dtype)
    checkpoint = checkpoints.load_checkpoint(
        source,
        dtype=dtype,
        preserve_dtype=preserve_dtype,
        quantization=quantization,
        mesh=mesh,
        allow_nan=allow_nan,
    )
    params = checkpoint.params
    if adapter is not None:
        flat = flax.traverse_util.flatten_dict(params, sep="/")
        rank, alpha, _, leaves = peft.read_adapter(paths.resolve(adapter), flat)
        low_rank = {path: jnp.asarray(leaf) for path, leaf in leaves.items()}
        params = adapt(flax.traverse_util.unflatten_dict(low_rank, sep="/"), params, alpha / rank)
    params = prepare_params(
        source.config, params, mesh=mesh, stack_layers=stack_layers, consume=True
    )
    return LanguageModel(source.config, params, tokenizer, dtype, settings)


def quantize(lm: LanguageModel, quantization: QuantizationConfig) -> LanguageModel:
    """Returns the model with its linear weights in 4 or 8 bits, byte for byte as bitsandbytes packs
    them.

    The embedding, the output head, gates, convolutions, norms and biases stay as they are, and so
    does the model's dtype: `bnb_4bit_compute_dtype` is for those who load what `save` writes.

    Args:
      lm: The model, which is not changed.
      quantization: What to pack, and how.

    Raises:
      ValueError: a weight to be packed holds NaN or infinity.
      CheckpointError: (a ValueError) a weight is packed already, otherwise than asked for.
    """
    inputs.check_type("lm", lm, LanguageModel, "a LanguageModel")
    inputs.check_type("quantization", quantization, QuantizationConfig, _QUANTIZATION)
    _check_merged(lm)
    params = unstack_params(lm.config, lm.params)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    architecture = model_type(lm.config)
    packed = {
        path: checkpoints.pack_leaf(path, leaf, quantization, architecture=architecture)
        for path, leaf in flat.items()
    }
    params = prepare_params(
        lm.config,
        flax.traverse_util.unflatten_dict(packed, sep="/"),
        mesh=lm.mesh,
        stack_layers=is_stacked(lm.params),
    )
    return dataclasses.replace(lm, params=params, quantization=quantization)


def dequantize(lm: LanguageModel, dtype: DTypeLike | None = None) -> LanguageModel:
    """Returns the model with plain arrays as weights, as gradients and other libraries want them.

    Packed weights are unpacked, and an adapter is merged into the weights that it adds to, in float32.

    Args:
      lm: The model, which is not changed.
      dtype: The dtype of the unpacked weights; that of the model's activations by default.

    Raises:
      ValueError: `dtype` is none that a model runs in.
    """
    inputs.check_type("lm", lm, LanguageModel, "a LanguageModel")
    dtype = check_dtype(lm.dtype if dtype is None else dtype)
    params = unstack_params(lm.config, lm.params)
    params = jax.tree.map(
        lambda leaf: leaf.dequantize(dtype) if is_weight(leaf) else leaf, params, is_leaf=is_weight
    )
    params = prepare_params(
        lm.config, params, mesh=lm.mesh, stack_layers=is_stacked(lm.params), consume=True
    )
    return dataclasses.replace(lm, params=params, quantization=None)


def save(lm: LanguageModel, folder: str | Path, format: str = "orbax") -> None:
    """Writes a model and its tokenizer into a new folder, which `load` reads back exactly.

    Args:
      lm: The model.
      folder: What to make; it must not exist, or be empty, and appears when it is complete.
      format: "orbax" is ours; "huggingface" is what transformers reads.

    Raises:
      CheckpointError: (a ValueError) the folder holds something, or the format cannot express the
        model, or an adapter stands beside its weights.
    """
    inputs.check_type("lm", lm, LanguageModel, "a LanguageModel")
    _check_merged(lm)
    check_value("format", format, str, one_of=checkpoints.WRITTEN)
    params = lm.params
    if is_stacked(params):  # on the host, where layers are views of their stack
        params = unstack_params(lm.config, to_host(params))
    checkpoints.save_checkpoint(
        folder,
        lm.config,
        params,
        format=format,
        tokenizer=lm.tokenizer,
        quantization=None if lm.quantization is None else lm.quantization.to_dict(),
    )


def _check_merged(lm: LanguageModel) -> None:
    leaves = jax.tree.leaves(lm.params, is_leaf=is_weight)
    if any(isinstance(leaf, LoRAWeight) for leaf in leaves):
        raise CheckpointError(
            "an adapter stands beside the model's weights: griffin_jax.dequantize(lm) merges it"
        )
