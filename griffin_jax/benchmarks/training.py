"""Training steps: tokens per second, model FLOP utilization and memory, over sequence lengths."""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from griffin_jax.benchmarks import memory
from griffin_jax.benchmarks.timing import Timing
from griffin_jax.config import GriffinConfig
from griffin_jax.models import Griffin, init_params
from griffin_jax.models.griffin import REMAT_POLICIES
from griffin_jax.sharding import check_batch, check_config, make_mesh
from griffin_jax.training.flops import peak_flops, train_flops_per_token
from griffin_jax.training.optimizer import OptimizerConfig, adamw
from griffin_jax.training.train_step import (
    TrainState,
    data_mesh,
    make_train_step,
    put_batch,
    shard_state,
)

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Variant:
    """The memory settings of a step; see `griffin_jax.training.TrainConfig`.

    Attributes:
      remat: What the backward pass recomputes.
      loss_chunks: Parts of a sequence whose logits exist at a time.
      microbatches: Parts of a batch whose gradients are accumulated.
    """

    remat: str
    loss_chunks: int = 1
    microbatches: int = 1

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """Parses REMAT, REMAT:LOSS_CHUNKS or REMAT:LOSS_CHUNKS:MICROBATCHES, such as "dots:8".

        Raises:
          ValueError: the text is none of these.
        """
        remat, *counts = text.split(":")
        good = len(counts) <= 2 and all(count.isdecimal() and int(count) for count in counts)
        if remat not in REMAT_POLICIES or not good:
            raise ValueError(
                f"variant {text!r} must be REMAT:LOSS_CHUNKS:MICROBATCHES, such as 'dots:8:1', "
                f"with REMAT one of {', '.join(sorted(REMAT_POLICIES))}"
            )
        return cls(remat, *map(int, counts))


def measure_lengths(
    model: GriffinConfig,
    lengths: Sequence[int],
    tokens: int,
    variants: Sequence[Variant],
    *,
    dtype: DTypeLike = jnp.bfloat16,
    repeats: int = 5,
    document: int = 0,
    mesh: Mesh | None = None,
) -> Iterator[Row]:
    """Times AdamW steps of a model with random weights on random tokens.

    Every variant is measured at the first length, and the fastest that fits at the others. A sequence
    is one document; `document` adds a row at the first length in which every sequence is packed.

    Args:
      model: The model's shape.
      lengths: Tokens in a sequence.
      tokens: In a batch, the same at every length.
      variants: Ways to spend memory.
      dtype: The dtype of activations; master weights and the optimizer's state are float32.
      repeats: Steps that are timed, after two that are not.
      document: Tokens of each packed document in the row that has them; 0 for no such row.
      mesh: How devices share the work; by default every device has rows of its own.

    Yields:
      A row per measurement, as it comes; see `Bench.measure`.

    Raises:
      ValueError: a length does not divide `tokens`, a variant does not divide a length or batch, or
        (a MeshError) the mesh does not divide the model or a batch.
    """
    for length in lengths:
        if tokens % length:
            raise ValueError(f"length {length} does not divide the {tokens} tokens of a batch")
    bench = Bench(model, dtype, repeats, data_mesh() if mesh is None else mesh)
    rows = []
    for variant in variants:
        rows.append(bench.measure(tokens // lengths[0], lengths[0], variant))
        yield rows[-1]
    measured = [row for row in rows if "error" not in row]
    if measured:
        best = variants[rows.index(max(measured, key=lambda row: row["tokens_per_second"]))]
        for length in lengths[1:]:
            yield bench.measure(tokens // length, length, best)
        if document:
            yield bench.measure(tokens // lengths[0], lengths[0], best, document)


class Bench:
    """Times training steps of one model, one program after another in the same memory."""

    def __init__(self, model: GriffinConfig, dtype: DTypeLike, repeats: int, mesh: Mesh):
        check_config(model, mesh)
        self._config, self._dtype, self._repeats = model, jnp.dtype(dtype), repeats
        self._mesh = mesh
        self._optimizer = adamw(OptimizerConfig(warmup_steps=10), steps=1000)
        self._state: TrainState | None = None
        self._programs: dict[tuple[int, Variant], tuple[jax.stages.Compiled, float]] = {}

    def prepare(self, cases: Iterable[tuple[int, int, Variant]]) -> None:
        """Compiles the programs of batch sizes, lengths and variants side by side, ahead of `measure`."""
        if self._state is None:
            self._state = self._fresh_state()
        lowered = {}
        for batch_size, length, variant in cases:
            step, batch = self._step(variant), self._batch(batch_size, length, 0)
            lowered[length, variant] = step.lower(self._state, None, batch)
        begin = time.perf_counter()
        with futures.ThreadPoolExecutor() as pool:
            compiled = pool.map(lambda program: program.compile(), lowered.values())
            for key, program in zip(lowered, compiled, strict=True):
                self._programs[key] = program, time.perf_counter() - begin

    def forget(self) -> None:
        """Gives the memory of programs and parameters back."""
        self._state = None
        self._programs.clear()

    def measure(self, batch_size: int, length: int, variant: Variant, document: int = 0) -> Row:
        """Compiles and times one step on sequences of one document, or of many of `document` tokens.

        Returns:
          The variant's fields, `devices` and `mesh` (its axes of more than one), `length`,
          `batch_size`, `document`, `dtype` (of activations), `parameters`, `flops_per_token` as
          `train_flops_per_token` counts them for one document; `compile_seconds` with tracing;
          `memory_bytes`, all that the program needs; `seconds` (a `Timing`) per step,
          `tokens_per_second`, `mfu` against the data sheet's bfloat16 rate (None for a device without
          one), and the `losses` of all steps, with the last as `loss`: of one batch, which steps come
          to know by heart, so that they tell whether two meshes train alike.
          Where memory does not suffice, `error` says so in place of what could not be had.
        """
        if batch_size % variant.microbatches:
            raise ValueError(
                f"{variant.microbatches} microbatches do not divide a batch of {batch_size}"
            )
        check_batch(batch_size, self._mesh)
        flops = train_flops_per_token(self._config, length)
        row: dict[str, Any] = {
            "devices": self._mesh.size,
            "mesh": {axis: size for axis, size in self._mesh.shape.items() if size > 1},
            "length": length,
            "batch_size": batch_size,
            "document": document or length,
            "dtype": self._dtype.name,
        }
        row |= dataclasses.asdict(variant) | {"flops_per_token": flops}
        try:
            with memory.meeting_limits():
                self._time(row, self._batch(batch_size, length, document), variant)
        except memory.OutOfMemory as error:
            row["error"] = str(error)
            self._state = None  # the step that failed may have taken it
            return row
        row["tokens_per_second"] = batch_size * length / row["seconds"]["median"]
        peak = peak_flops(jax.devices()[0])
        peak = peak and peak * self._mesh.size
        row["mfu"] = peak and flops * row["tokens_per_second"] / peak
        return row

    def _time(self, row, batch, variant):
        if self._state is None:
            self._state = self._fresh_state()
        row["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))
        compiled, row["compile_seconds"] = self._program(batch, row["length"], variant)
        analysis = compiled.memory_analysis()
        row["memory_bytes"] = (
            analysis.argument_size_in_bytes
            + analysis.output_size_in_bytes
            - analysis.alias_size_in_bytes
            + analysis.temp_size_in_bytes
        )
        limit = memory.limit_bytes()
        if limit and row["memory_bytes"] > limit:
            raise memory.OutOfMemory(
                f"needs {row['memory_bytes'] / 1e9:.1f} GB of {limit / 1e9:.1f} GB"
            )
        seconds, losses = [], []
        for _ in range(2 + self._repeats):
            begin = time.perf_counter()
            self._state, metrics = compiled(self._state, None, batch)
            losses.append(float(metrics["loss"]))
            seconds.append(time.perf_counter() - begin)
        row["seconds"] = Timing.of(seconds[2:]).to_dict()
        row |= {"loss": losses[-1], "losses": losses}

    def _program(self, batch, length, variant):
        """Returns the compiled step, and how long tracing and compiling took."""
        if (length, variant) not in self._programs:
            step = self._step(variant)
            begin = time.perf_counter()
            compiled = step.lower(self._state, None, batch).compile()
            self._programs[length, variant] = compiled, time.perf_counter() - begin
        return self._programs[length, variant]

    def _step(self, variant):
        return make_train_step(
            Griffin(self._config, dtype=self._dtype, remat=variant.remat),
            self._optimizer,
            self._mesh,
            z_loss=1e-4,
            microbatches=variant.microbatches,
            loss_chunks=variant.loss_chunks,
        )

    def _fresh_state(self):
        @jax.jit
        def start(key):
            params = init_params(self._config, key)
            return TrainState(jnp.int32(0), params, self._optimizer.init(params))

        # Among the generators, this one compiles fastest and needs no temporaries of its own.
        return shard_state(self._config, start(jax.random.key(0, impl="rbg")), self._mesh)

    def _batch(self, batch_size, length, document):
        shape = batch_size, length
        positions = np.arange(length) % (document or length)
        tokens = np.random.default_rng(0).integers(
            0, self._config.vocab_size, (batch_size, length + 1)
        )
        batch = {
            "inputs": tokens[:, :-1].astype(np.int32),
            "targets": tokens[:, 1:].astype(np.int32),
            "positions": np.broadcast_to(positions.astype(np.int32), shape),
            "mask": np.ones(shape, np.float32),
        }
        return put_batch(batch, self._mesh)


def measure(config: Mapping[str, Any]) -> Iterator[Row]:
    """Calls `measure_lengths` with a config's `model` (a dict), `lengths`, `tokens`, `variants`,
    `dtype`, `repeats`, `document` and `mesh`."""
    return measure_lengths(
        GriffinConfig.from_dict(dict(config["model"])),
        list(config["lengths"]),
        config["tokens"],
        [Variant.parse(text) for text in config["variants"]],
        dtype=config["dtype"],
        repeats=config["repeats"],
        document=config["document"],
        mesh=make_mesh(**config["mesh"]),
    )
