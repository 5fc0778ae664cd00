"""Writes a Hugging Face folder of a published shape with random weights, to measure with.

  python -m experiments.random_checkpoint --preset=recurrentgemma-2b --output=FOLDER

One tensor is in memory at a time. The weights have the sizes of freshly initialized ones, so the
model runs and its numbers stay in range; what it writes is noise. 2B takes 5.4 GB on disk in
bfloat16, 9B 17.2 GB. --layers and --vocabulary make fewer of both, to try a command with layers of
the published widths on a small machine.
"""

from collections.abc import Iterator

import numpy as np
from absl import flags

from experiments import command, outputs

_PRESET = flags.DEFINE_string("preset", "tiny", "Shape: recurrentgemma-2b, recurrentgemma-9b, ...")
_LAYERS = flags.DEFINE_integer("layers", None, "The first so many only.", lower_bound=1)
_VOCABULARY = flags.DEFINE_integer("vocabulary", None, "So many pieces.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "runs/random", "Folder to make.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["float32", "float16", "bfloat16"], "The dtype of weights."
)
_SEED = flags.DEFINE_integer("seed", 0, "The seed of the random numbers.", lower_bound=0)

_PIECE = 2**24  # numbers drawn at a time


def main() -> None:
    import griffin_jax
    from griffin_jax import checkpoints

    output = outputs.new_folder(_OUTPUT)
    changes = {"num_layers": _LAYERS.value, "vocab_size": _VOCABULARY.value}
    config = griffin_jax.preset(_PRESET.value).replace(
        **{name: value for name, value in changes.items() if value is not None}
    )
    leaves = random_leaves(config, np.dtype(_DTYPE.value), _SEED.value)
    checkpoints.save_leaves(output, config, leaves)
    print(f"{output}: {_PRESET.value} with random weights")


def random_leaves(config, dtype: np.dtype, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every leaf of such a model and its path."""
    from griffin_jax.checkpoints.tree import flat_abstract_params

    random = np.random.default_rng(seed)
    for path, struct in flat_abstract_params(config).items():
        leaf = np.empty(struct.shape, dtype)
        flat = leaf.reshape(-1)
        for begin in range(0, flat.size, _PIECE):
            piece = flat[begin : begin + _PIECE]
            if path.endswith("a_param"):  # decays from 0.9 to 0.999 and more
                piece[:] = random.uniform(-7, -2, piece.size)
            else:
                width = struct.shape[-1] if len(struct.shape) > 1 else 100
                piece[:] = random.standard_normal(piece.size, np.float32) * width**-0.5
        yield path, leaf


if __name__ == "__main__":
    command.run(main)
