"""Packs a model's linear weights into 4 or 8 bits, in the bytes of bitsandbytes.

  python -m experiments.pack --config.model=FOLDER --output=FOLDER --config=configs/pack_nf4.py

Reads any folder that griffin_jax.load does, or a name on the Hub, and writes a new one with the
tokenizer in it. One tensor is in memory at a time. Interrupted, it leaves nothing behind that could
be taken for a model. Prints sizes, the relative error |W - packed W| / |W| of each group of weights,
and how much memory it took.

The config says how to pack: --config.quantization.bnb_4bit_quant_type=fp4,
--config.quantization.bnb_4bit_use_double_quant=true; the default, configs/pack_nf4.py, lists all of
4 bits, and configs/pack_int8.py makes 8.
"""

import collections
import re
from collections.abc import Iterator
from typing import Any

from absl import flags

from experiments import command, outputs

_CONFIG = command.define_config("pack", "pack_nf4.py")
_OUTPUT = flags.DEFINE_string("output", "runs/packed", "Folder to make.")

_KEPT = "not packed"


class Packer:
    """Packs leaves and keeps count.

    Attributes:
      tensors: How many there are in each group.
      before: Bytes of each group as they came.
      after: Bytes as they leave.
      squares: For each group, the sums over squared errors and squared weights.
    """

    def __init__(self, source: Any, settings: Any, block_size: int):
        self.tensors = collections.Counter()
        self.before, self.after = collections.Counter(), collections.Counter()
        self.squares: dict[str, Any] = collections.defaultdict(float)
        self._source, self._settings, self._block_size = source, settings, block_size

    def leaves(self) -> Iterator[tuple[str, Any]]:
        """Yields the source's leaves, packed."""
        import jax
        import numpy as np

        from griffin_jax import checkpoints
        from griffin_jax.checkpoints import huggingface_config, packing, placement

        with placement.progress_bar("packing", self._source.nbytes, True) as bar:
            for path, leaf in self._source.leaves():
                name = self._source.stored_name(path)
                packed = checkpoints.pack_leaf(
                    path,
                    leaf,
                    self._settings,
                    block_size=self._block_size,
                    name=name,
                    architecture=huggingface_config.model_type(self._source.config),
                )
                if packed is not leaf:
                    group = re.sub(r"^blocks_\d+/|/weight$", "", path)
                    self.squares[group] += packing.squared_errors(leaf, packed)
                    packed = jax.tree.map(np.asarray, packed)
                elif isinstance(leaf, np.ndarray):
                    group = _KEPT
                    if not placement.all_finite_on_host(leaf):
                        raise ValueError(f"{name} holds NaN or infinity")
                else:
                    group = "packed before"
                self.tensors[group] += 1
                self.before[group] += placement.leaf_nbytes(leaf)
                self.after[group] += placement.leaf_nbytes(packed)
                bar.update(placement.leaf_nbytes(leaf))
                del leaf  # its memory, before the next one comes
                yield path, packed

    def report(self) -> str:
        """Returns a table of the groups and all together."""
        from griffin_jax.markdown import table

        rows = []
        for group in sorted(self.tensors, key=lambda group: (group == _KEPT, group)):
            error = ""
            if group in self.squares:
                of_error, of_weight = self.squares[group]
                error = f"{(of_error / of_weight) ** 0.5:.4f}" if of_weight else "0"
            rows.append([*self._row(group, self.tensors, self.before, self.after), error])
        tensors, before, after = (
            {"all": sum(x.values())} for x in (self.tensors, self.before, self.after)
        )
        rows.append([*self._row("all", tensors, before, after), ""])
        return table(["weights", "tensors", "MB before", "MB after", "error"], rows, lined_up=True)

    def _row(self, group, tensors, before, after):
        sizes = (f"{x[group] / 1e6:,.1f}" for x in (before, after))
        return [group, f"{tensors[group]:,}", *sizes]


def main() -> None:
    from griffin_jax import QuantizationConfig, checkpoints
    from griffin_jax.benchmarks.memory import host_peak_bytes
    from griffin_jax.tokenizer import find_tokenizer

    before = host_peak_bytes()
    config, output = _CONFIG.value, outputs.new_folder(_OUTPUT)
    settings = QuantizationConfig(**config.quantization)
    folder = checkpoints.find_folder(config.model)
    source = checkpoints.open_checkpoint(folder)
    packer = Packer(source, settings, config.get("block_size", 64))
    checkpoints.save_leaves(
        output,
        source.config,
        packer.leaves(),
        format=config.format,
        tokenizer=find_tokenizer(folder, source.config),
        quantization=settings.to_dict(),
    )
    print(packer.report())
    print(f"{output}: the packed model")
    if before is not None:
        peak = host_peak_bytes() / 1e9
        print(f"peak memory: {peak:.2f} GB, of which {before / 1e9:.2f} before anything was read")


if __name__ == "__main__":
    command.run(main)
