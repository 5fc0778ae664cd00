"""Converts a model between formats and dtypes, and from packed weights back to whole ones.

  python -m experiments.convert --config.model=FOLDER --output=FOLDER --config.format=huggingface
  python -m experiments.convert --config.model=FOLDER --output=FOLDER --config.dequantize=true

Reads any folder that griffin_jax.load does (Hugging Face's, packed ones too, published DeepMind trees,
our own) or a name on the Hub, and writes a new folder with the tokenizer in it. One tensor is in
memory at a time. Interrupted, it leaves nothing behind that could be taken for a model.

The config says what to make: --config.dtype=bfloat16; the default, configs/convert.py, lists all.
"""

from collections.abc import Iterator
from typing import Any

from absl import flags

from experiments import command, outputs

_CONFIG = command.define_config("convert", "convert.py")
_OUTPUT = flags.DEFINE_string("output", "runs/converted", "Folder to make.")


def main() -> None:
    from griffin_jax import checkpoints
    from griffin_jax.config import check_dtype
    from griffin_jax.tokenizer import find_tokenizer

    config, output = _CONFIG.value, outputs.new_folder(_OUTPUT)
    if config.dtype is not None:
        check_dtype(config.dtype)
    folder = checkpoints.find_folder(config.model)
    source = checkpoints.open_checkpoint(folder)
    checkpoints.save_leaves(
        output,
        source.config,
        converted(source, config.dtype, config.dequantize),
        format=config.format,
        tokenizer=find_tokenizer(folder, source.config),
        quantization=source.quantization,
    )
    print(f"{output}: the converted model")


def converted(source: Any, dtype: str | None, dequantize: bool) -> Iterator[tuple[str, Any]]:
    """Yields the source's leaves, unpacked if `dequantize`, and arrays in `dtype` if one is given.

    Raises:
      ValueError: a weight holds NaN or infinity, or does in this dtype.
    """
    import numpy as np

    from griffin_jax.checkpoints import placement
    from griffin_jax.weight import is_weight

    with placement.progress_bar("converting", source.nbytes, True) as bar:
        for path, leaf in source.leaves():
            nbytes = placement.leaf_nbytes(leaf)
            if dequantize and is_weight(leaf):
                leaf = np.asarray(leaf.dequantize(dtype))
            if isinstance(leaf, np.ndarray):
                leaf = _cast(source.stored_name(path), leaf, dtype)
            yield path, leaf
            bar.update(nbytes)


def _cast(name, array, dtype):
    import jax.numpy as jnp
    import numpy as np

    from griffin_jax.checkpoints import placement

    if dtype is not None:
        with np.errstate(over="ignore"):
            array = array.astype(jnp.dtype(dtype), copy=False)
    if not placement.all_finite_on_host(array):
        raise ValueError(f"{name} holds NaN or infinity in {array.dtype}")
    return array


if __name__ == "__main__":
    command.run(main)
